"""Whether the service is ready, asked at most once a second however many probes come.

Probes are open to anyone, so they must not become calls to Ray, nor take up threads while Ray is silent.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import text

from hdet_service.problems import Unavailable
from hdet_service.store.database import Store
from hdet_service.store.errors import StoreError

WITHIN_S = 5.0
KEPT_FOR_S = 1.0
"""An answer, good or bad, is given again for this long."""


class Readiness:
    """Asks database and Ray.

    Args:
        store: The database.
        starter: Says whether Ray answers; blocks.
        clock: Seconds, monotonic.
    """

    def __init__(self, store: Store, starter: Any, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._starter = starter
        self._clock = clock
        self._turn = asyncio.Lock()
        self._problem: Unavailable | None = None
        self._known_until: float | None = None
        self._asking: asyncio.Future[bool] | None = None

    async def check(self) -> None:
        """Nothing, where the service is ready.

        Raises:
            Unavailable: says what does not answer.
        """
        async with self._turn:
            if self._known_until is None or self._clock() >= self._known_until:
                self._problem = await self._find_problem()
                self._known_until = self._clock() + KEPT_FOR_S
            if self._problem is not None:
                raise self._problem

    async def _find_problem(self) -> Unavailable | None:
        try:
            async with asyncio.timeout(WITHIN_S):
                await self._store.read(lambda session: session.execute(text("SELECT 1")).scalar())
                is_ready = await self._ask_ray()
        except TimeoutError:
            return Unavailable(f"no answer within {WITHIN_S:g} s; the machine may be overloaded")
        except StoreError:
            return Unavailable("the database does not answer; the service's log says why", slug="database")
        if is_ready:
            return None
        return Unavailable("Ray does not answer; `hdet up --supervise` brings a lost head back", slug="ray")

    async def _ask_ray(self) -> bool:
        # A question that hangs is not asked a second time beside it: one thread at most waits for Ray.
        if self._asking is None or self._asking.done():
            self._asking = asyncio.ensure_future(asyncio.to_thread(self._starter.is_ready))
        return await asyncio.shield(self._asking)
