"""The outermost layer of a request: security headers, the error that nobody foresaw, and the metrics.

Plain ASGI, so that streams pass through untouched.
"""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Callable
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hdet_service.problems import MEDIA_TYPE, InternalError

log = logging.getLogger(__name__)

Observe = Callable[..., object]
"""`Metrics.observe_request`."""

_HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
    b"cache-control": b"no-store",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
}
"""Set where an answer doesn't say otherwise: pages have a policy of their own."""


_CLIENT_LEFT = 499
"""Counted where nobody was left to be answered."""


class Guard:
    """Wraps the application.

    Args:
        observe: Told of each request once its answer has ended.
        is_tls: Browsers are told to come by TLS only.
    """

    def __init__(self, app: ASGIApp, *, observe: Observe, is_tls: bool) -> None:
        self._app = app
        self._observe = observe
        self._headers = dict(_HEADERS)
        if is_tls:
            self._headers[b"strict-transport-security"] = b"max-age=31536000"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began_s = time.perf_counter()
        status = 0
        is_stream = False

        async def send_guarded(message: Message) -> None:
            nonlocal status, is_stream
            if message["type"] == "http.response.start":
                status = message["status"]
                held = {name.lower(): value for name, value in message.get("headers", ())}
                is_stream = held.get(b"content-type", b"").startswith(b"text/event-stream")
                added = [(name, value) for name, value in self._headers.items() if name not in held]
                message = {**message, "headers": [*message.get("headers", ()), *added]}
            await send(message)

        try:
            await self._app(scope, receive, send_guarded)
        except ClientDisconnect:
            log.info("client left: %s %s", scope["method"], scope["path"])
        except Exception:
            error_id = secrets.token_hex(8)
            log.exception("request failed: %s %s, error id %s", scope["method"], scope["path"], error_id)
            if status:
                raise  # too late for an answer: the server closes the connection, which tells the client
            await _send_problem(send_guarded, InternalError(error_id), scope["path"])
        finally:
            seconds = time.perf_counter() - began_s
            self._observe(
                scope["method"], route_of(scope), status or _CLIENT_LEFT, seconds, is_stream=is_stream
            )


def route_of(scope: Scope) -> str | None:
    """The path's template: a bounded set, unlike paths. None where no route matches."""
    route: Any = scope.get("route")
    return getattr(route, "path", None)


async def _send_problem(send: Send, error: InternalError, path: str) -> None:
    body = json.dumps(error.document(path)).encode()
    headers = [(b"content-type", MEDIA_TYPE.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
