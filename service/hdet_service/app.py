"""The HTTP surface: routes, errors as problem documents, and what stands in front of both.

Handlers are thin: what may happen to a job or a schedule is decided by `Jobs` and `Runs`.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from hdet_ray import __version__
from hdet_ray.exceptions import ConfigError, OverrideError
from hdet_service import openapi
from hdet_service.console.routes import router as console_router
from hdet_service.cursors import Cursors
from hdet_service.guard import Guard
from hdet_service.limits import RequestRates, StreamSlots
from hdet_service.packages import Packages
from hdet_service.problems import (
    MEDIA_TYPE,
    BadRequest,
    InternalError,
    Invalid,
    MethodNotAllowed,
    NotFound,
    ServiceError,
    Unavailable,
)
from hdet_service.readiness import Readiness
from hdet_service.routes import ROUTERS
from hdet_service.saved import Storage
from hdet_service.secrets_file import load_key
from hdet_service.sessions import Sessions
from hdet_service.store.errors import (
    StoreBusyError,
    StoreClosedError,
    StoreError,
    StoreFullError,
    StoreIOError,
)
from hdet_service.tokens import Tokens

log = logging.getLogger(__name__)

_PASSING = {StoreBusyError: "database-busy", StoreFullError: "disk-full", StoreIOError: "disk-error"}
"""Store errors that may pass: nothing was changed, the caller may try again."""


def create_app(controller: Any) -> FastAPI:
    """The application of one controller; makes the first operator's token where there is none.

    Args:
        controller: Has `store`, `settings`, `jobs`, `runs`, `events`, `metrics`, `starter`.

    Raises:
        ConfigError: the tokens file can't be read as one.
    """
    settings = controller.settings
    app = _bare_app(observe=controller.metrics.observe_request, is_tls=bool(settings.tls_terminated))
    key = load_key(settings.home / "session.key")
    tokens = Tokens(controller.store)
    app.state.first_token = tokens.bootstrap(settings.token_path, settings.tokens_file)
    app.state.controller = controller
    app.state.tokens = tokens
    app.state.sessions = Sessions(key, tokens.stamp_of, is_secure=_is_secure(settings))
    app.state.cursors = Cursors(key)
    app.state.rates = RequestRates(settings.requests_per_s, settings.request_burst)
    app.state.strangers = RequestRates(settings.requests_per_s, settings.request_burst)
    app.state.streams = StreamSlots(settings.max_sse_clients, settings.max_sse_clients_per_token)
    app.state.keys_in_flight = set()
    app.state.readiness = Readiness(controller.store, controller.starter)
    app.state.storage = Storage(settings.home / "exports")
    app.state.packages = Packages(controller.store, settings.packages_path, settings.max_package_bytes)
    return app


def described_app() -> FastAPI:
    """The routes without a controller: enough to describe them."""
    return _bare_app(observe=lambda *_, **__: None, is_tls=False)


def _bare_app(*, observe: Callable[..., object], is_tls: bool) -> FastAPI:
    app = FastAPI(
        title="HDET controller",
        version=__version__,
        docs_url=None,  # FastAPI's page fetches its scripts from another host
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.routers = (*ROUTERS, console_router)
    for router in app.state.routers:
        app.include_router(router)
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)
    app.add_middleware(Guard, observe=observe, is_tls=is_tls)
    described: dict[str, Any] = {}

    def describe() -> dict[str, Any]:
        if not described:
            described.update(openapi.describe(app))
        return described

    app.openapi = describe  # type: ignore[method-assign]
    return app


def _is_secure(settings: Any) -> bool:
    return bool(settings.tls_terminated) or settings.public_url.startswith("https://")


def problem_response(error: ServiceError, request: Request) -> Response:
    """An error as its answer."""
    return JSONResponse(
        error.document(request.url.path),
        status_code=error.status,
        headers=error.headers,
        media_type=MEDIA_TYPE,
    )


async def _service_error(request: Request, error: ServiceError) -> Response:
    return problem_response(error, request)


async def _library_error(request: Request, error: ConfigError | OverrideError) -> Response:
    return problem_response(Invalid(str(error)), request)


async def _store_error(request: Request, error: StoreError) -> Response:
    for kind, slug in _PASSING.items():
        if isinstance(error, kind):
            log.error("store refused: %s", error)
            return problem_response(
                Unavailable(f"{slug.replace('-', ' ')}: nothing was changed; try again later", slug=slug),
                request,
            )
    if isinstance(error, StoreClosedError):
        return problem_response(Unavailable("the service is stopping; try again soon"), request)
    error_id = secrets.token_hex(8)
    log.error("store failed: error id %s", error_id, exc_info=error)
    return problem_response(InternalError(error_id), request)


async def _http_error(request: Request, error: HTTPException) -> Response:
    path = request.url.path[:200]
    if error.status_code == 404:
        return problem_response(NotFound(f"there is nothing at {path!r}; `/docs` lists the calls"), request)
    if error.status_code == 405:
        allowed = _methods_at(request)
        problem = MethodNotAllowed(
            f"{request.method[:20]} is not known at {path!r}; it knows {', '.join(allowed)}",
            headers={"Allow": ", ".join(allowed)},
        )
        return problem_response(problem, request)
    return problem_response(BadRequest(str(error.detail)), request)


async def _validation_error(request: Request, error: RequestValidationError) -> Response:
    errors = [
        {"field": ".".join(str(p) for p in one["loc"][1:]), "message": one["msg"]} for one in error.errors()
    ]
    return problem_response(Invalid("some parameters are not valid", errors=errors), request)


def _methods_at(request: Request) -> list[str]:
    """Methods that the path knows, over all routes: the router itself names those of one route only."""
    methods: set[str] = set()
    for router in request.app.state.routers:
        for route in router.routes:
            match, _ = route.matches(request.scope)
            if match is not Match.NONE:
                methods |= set(getattr(route, "methods", None) or ())
    return sorted(methods)


_Handler = Callable[[Request, Any], Awaitable[Response]]
_HANDLERS: dict[type[Exception], _Handler] = {
    ServiceError: _service_error,
    ConfigError: _library_error,
    OverrideError: _library_error,
    StoreError: _store_error,
    HTTPException: _http_error,
    RequestValidationError: _validation_error,
}
