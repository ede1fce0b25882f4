"""What keeps an open page up to date: a stream that says *something has changed*, and that it is still there.

What has changed the page reads itself, so a cut of the stream can lose nothing: the first thing that a new
one says is where things stand.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

HEARTBEAT_S = 10.0
"""The page waits a little over twice as long before it calls the stream dead."""
CALM_S = 0.5
"""Changes that come closer together are told as one."""


async def changes(
    bus: Any,
    job_id: str | None,
    version: Callable[[], Awaitable[str]],
    *,
    heartbeat_s: float = HEARTBEAT_S,
    calm_s: float = CALM_S,
) -> AsyncGenerator[bytes, None]:
    """The version of a page, at once and whenever it may have changed.

    Args:
        bus: `EventBus`.
        job_id: Whose page; None: the list of all.
        version: Reads it.
        heartbeat_s: A sign of life at least this often, in seconds.
        calm_s: Time between two changes that are told, at least.
    """
    if bus.is_closed:  # the service is stopping: the browser tries again until it is back
        return
    with bus.subscribe(job_id) as news:
        yield _event("version", await version())
        while True:
            try:
                async with asyncio.timeout(heartbeat_s):
                    await anext(news)
            except TimeoutError:
                yield _event("alive", "")
                continue
            except StopAsyncIteration:
                return
            await asyncio.sleep(calm_s)
            if not await _drain(news):
                return
            yield _event("version", await version())


async def _drain(news: Any) -> bool:
    """Take what waits; False once nothing more will come."""
    try:
        while True:
            async with asyncio.timeout(0):
                await anext(news)
    except TimeoutError:
        return True
    except StopAsyncIteration:
        return False


def _event(name: str, data: str) -> bytes:
    return f"event: {name}\ndata: {data}\n\n".encode()
