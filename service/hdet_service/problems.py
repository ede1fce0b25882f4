"""Errors of the service as values: each is one RFC 9457 problem document with a stable type.

`Jobs`, `Runs` and the routes raise these; `app.py` alone turns them into answers. No web framework is
imported here, so that everything below HTTP can use them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from hdet_ray.exceptions import HDETError

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:hdet:problem:"

FieldError = Mapping[str, str]
"""``{"field": "replicas.min", "message": "…"}``."""


class ServiceError(HDETError):
    """What a caller is told: status, stable type, title, and what to do about it.

    Args:
        detail: value, bound and remedy, for people; never a stack trace, never a secret.
        errors: offending fields, as ``{"field": "replicas.min", "message": "…"}``.
        headers: headers that the answer carries.
        extra: further members of the document (RFC 9457, section 3.2).
    """

    status: ClassVar[int] = 500
    slug: ClassVar[str] = "internal"
    title: ClassVar[str] = "The server failed"

    def __init__(
        self,
        detail: str,
        *,
        errors: Iterable[FieldError] = (),
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = [dict(error) for error in errors]
        self.headers = dict(headers or {})
        self.extra = dict(extra or {})

    @property
    def type(self) -> str:
        """The stable URN of this kind of problem."""
        return TYPE_PREFIX + self.slug

    def document(self, instance: str | None = None) -> dict[str, Any]:
        """The problem document; ``instance`` is the path that was asked for."""
        document: dict[str, Any] = {
            "type": self.type,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            **self.extra,
        }
        if instance is not None:
            document["instance"] = instance
        if self.errors:
            document["errors"] = self.errors
        return document


class BadRequest(ServiceError):
    """400: the request can't be read at all."""

    status, slug, title = 400, "bad-request", "The request can't be read"


class BadCursor(BadRequest):
    """400: a page cursor that this server did not write."""

    slug, title = "bad-cursor", "The cursor is not one of ours"


class Unauthorized(ServiceError):
    """401: no token, or none that is valid."""

    status, slug, title = 401, "unauthorized", "A valid token is needed"

    def __init__(self, detail: str, *, is_invalid: bool = False) -> None:
        challenge = 'Bearer realm="hdet"' + (', error="invalid_token"' if is_invalid else "")
        super().__init__(detail, headers={"WWW-Authenticate": challenge})


class Forbidden(ServiceError):
    """403: the token's role doesn't allow this call at all."""

    status, slug, title = 403, "forbidden", "The role of this token does not allow the call"


class CsrfMissing(Forbidden):
    """403: a change by cookie without the console's header."""

    slug, title = "csrf", "A change by cookie needs the CSRF header"


class NotFound(ServiceError):
    """404: absent, or not the caller's to see: one answer for both."""

    status, slug, title = 404, "not-found", "There is no such thing here"


class MethodNotAllowed(ServiceError):
    """405: the path exists, this method of it doesn't."""

    status, slug, title = 405, "method-not-allowed", "This path does not know the method"


class NotAcceptable(ServiceError):
    """406: no form that the caller accepts."""

    status, slug, title = 406, "not-acceptable", "This is not offered in the form asked for"


class RequestTimeout(ServiceError):
    """408: the body did not arrive in time."""

    status, slug, title = 408, "request-timeout", "The body did not arrive in time"


class Conflict(ServiceError):
    """409: the state of the thing forbids it now."""

    status, slug, title = 409, "conflict", "The current state does not allow this"


class IdempotencyInFlight(Conflict):
    """409: the first request with this key has not been answered yet."""

    slug, title = "idempotency-in-flight", "The first request with this key is still being answered"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"Retry-After": "1"})


class PreconditionFailed(ServiceError):
    """412: ``If-Match`` names a revision that is no longer the newest."""

    status, slug, title = 412, "precondition-failed", "It has changed since it was read"


class TooLarge(ServiceError):
    """413: more bytes than the cap."""

    status, slug, title = 413, "too-large", "The body is larger than allowed"


class UnsupportedMediaType(ServiceError):
    """415: not the content type that the call reads."""

    status, slug, title = 415, "unsupported-media-type", "This content type is not read here"


class Invalid(ServiceError):
    """422: readable, and wrong: ``errors`` names the fields."""

    status, slug, title = 422, "invalid", "Some fields are not valid"


class IdempotencyMismatch(Invalid):
    """422: the key was used before with another body."""

    slug, title = "idempotency-mismatch", "The key was used with another body"


class PreconditionRequired(ServiceError):
    """428: the call needs ``If-Match``."""

    status, slug, title = 428, "precondition-required", "The call needs If-Match"


class TooMany(ServiceError):
    """429: over a rate or a cap of streams."""

    status, slug, title = 429, "too-many-requests", "Too many requests"

    def __init__(self, detail: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(detail, headers={"Retry-After": str(max(1, math.ceil(retry_after_s)))})


class InternalError(ServiceError):
    """500: our fault; the id stands in the server's log beside the stack trace."""

    def __init__(self, error_id: str) -> None:
        super().__init__(
            f"the server failed; its log has the cause under error id {error_id}",
            extra={"error_id": error_id},
        )


class Unavailable(ServiceError):
    """503: can't answer now (starting, draining, disk full, database locked); nothing was changed."""

    status, slug, title = 503, "unavailable", "The service can't do this now"

    def __init__(self, detail: str, *, retry_after_s: float = 5.0, slug: str | None = None) -> None:
        super().__init__(detail, headers={"Retry-After": str(max(1, math.ceil(retry_after_s)))})
        if slug is not None:
            self.extra["reason"] = slug


def missing_job(job_id: str) -> NotFound:
    """One text for absent and unreadable jobs, so that neither leaks."""
    return NotFound(f"there is no job {job_id!r} that this token may read; `GET /v1/jobs` lists those")


PROBLEMS: tuple[type[ServiceError], ...] = (
    BadRequest,
    BadCursor,
    Unauthorized,
    Forbidden,
    CsrfMissing,
    NotFound,
    MethodNotAllowed,
    NotAcceptable,
    RequestTimeout,
    Conflict,
    IdempotencyInFlight,
    PreconditionFailed,
    TooLarge,
    UnsupportedMediaType,
    Invalid,
    IdempotencyMismatch,
    PreconditionRequired,
    TooMany,
    InternalError,
    Unavailable,
)
"""Every kind, for the page that lists them and the schema."""
