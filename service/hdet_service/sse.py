"""Streams by server-sent events: an id on each item, a sign of life, and an end that is said.

The database (or the log file) is always read first, from the id that the client saw last; the bus only wakes
the reader up. So a cut anywhere, and a restart of the service, lose nothing and double nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from hdet_service.auth import Principal
from hdet_service.describing import EVENT_STREAM, JSON
from hdet_service.logs import LOG_START, LogPosition
from hdet_service.problems import Invalid, NotAcceptable

HEARTBEAT_S = 15.0
END_EVENT = "end"
EVENT_ID = r"^[0-9]{0,15}$"
LOG_ID = r"^(|0|[0-9]{1,9}:[0-9]{1,15})$"
"""Nothing is the beginning, as 0 is: some clients send the header before they have an id."""


def item(id: int | str, type: str, data: Any) -> bytes:
    """One item on the wire. JSON has no line breaks of its own, so ``data`` is one line."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return f"id: {id}\nevent: {type}\ndata: {text}\n\n".encode()


def end(data: Any) -> bytes:
    """Nothing can follow. It has no id: whoever comes again from the last item is told the same."""
    return f"event: {END_EVENT}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


HEARTBEAT = b": alive\n\n"
OPENING = b": stream\nretry: 1000\n\n"
"""Sent at once, so that a client knows that it stands; reconnect after one second."""


def wants_stream(request: Request) -> bool:
    """Whether the caller accepts a stream, or a page.

    Raises:
        NotAcceptable: neither.
    """
    accept = request.headers.get("accept", "*/*").lower()
    kinds = [part.split(";", 1)[0].strip() for part in accept.split(",")]
    if EVENT_STREAM in kinds:
        return True
    if any(kind in ("*/*", "application/*", JSON, "") for kind in kinds):
        return False
    raise NotAcceptable(f"{accept[:100]!r} is not offered; accept {JSON} or {EVENT_STREAM}")


def last_event_id(request: Request) -> int:
    """The id behind which events go on; 0 starts at the beginning.

    Raises:
        Invalid: no id of ours.
    """
    return int(_last_id(request, EVENT_ID) or 0)


def last_log_position(request: Request) -> LogPosition:
    """The place behind which output goes on; 0 is the beginning, as with events.

    Raises:
        Invalid: no id of ours.
    """
    text = _last_id(request, LOG_ID)
    return LOG_START if text is None or text == "0" else LogPosition.parse(text)


def _last_id(request: Request, pattern: str) -> str | None:
    text = request.headers.get("last-event-id", "")
    if not text:
        return None
    if not re.fullmatch(pattern, text):
        message = "must be an id that this stream sent"
        raise Invalid(f"Last-Event-ID {message}", errors=[{"field": "Last-Event-ID", "message": message}])
    return text


def stream_response(request: Request, who: Principal, chunks: AsyncGenerator[bytes, None]) -> Response:
    """An answer that stands until ``chunks`` ends, the client goes, or the caller's token is revoked.

    Raises:
        TooMany: no slot is free.
    """
    return _Stream(request.app.state, who, chunks)


class _Stream(StreamingResponse):
    """Holds a slot from its making to the end of its sending, however that ends."""

    def __init__(self, state: Any, who: Principal, chunks: AsyncGenerator[bytes, None]) -> None:
        self._state = state
        self._who = who
        self._chunks = chunks
        state.streams.take(who.name)
        super().__init__(
            self._sent(),
            media_type=EVENT_STREAM,
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with self._state.controller.metrics.stream():
                await super().__call__(scope, receive, send)
        finally:
            self._state.streams.give_back(self._who.name)
            await self._chunks.aclose()

    async def _sent(self) -> AsyncIterator[bytes]:
        yield OPENING
        async for chunk in self._chunks:
            if self._state.tokens.stamp_of(self._who) is None:
                return
            yield chunk
