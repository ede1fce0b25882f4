"""What can go wrong between a caller and the service, as one tree.

Whoever catches `ClientError` catches all of it; `HDETError` catches it too. Each message is one line that
says what to do next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hdet_ray.exceptions import HDETError


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A problem document (RFC 9457) as the service answered it."""

    status: int
    """The HTTP status."""
    type: str = "about:blank"
    """The stable kind of problem, as ``urn:hdet:problem:conflict``."""
    title: str = ""
    detail: str = ""
    errors: tuple[tuple[str, str], ...] = ()
    """Offending fields and what is wrong with each."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further members of the document."""

    def __str__(self) -> str:
        fields = "; ".join(f"{name}: {message}" if name else message for name, message in self.errors)
        text = self.detail or self.title or f"the service answered {self.status}"
        return f"{text} ({fields})" if fields and fields not in text else text


class ClientError(HDETError):
    """Root of the client's errors."""


class Unreachable(ClientError):
    """Nobody answered at the service's address, or the connection broke before the answer."""


class UnexpectedAnswer(ClientError):
    """Something answered that does not speak this API: another server, or a proxy's page."""


class PackageError(ClientError):
    """A folder can't be packed: it is missing, empty, or a link in it leads outside."""


class AmbiguousJob(ClientError):
    """A name or prefix stands for several jobs.

    Attributes:
        matches: ``(id, name, state)`` of each.
    """

    def __init__(self, message: str, matches: Sequence[tuple[str, str, str]]) -> None:
        super().__init__(message)
        self.matches = tuple(matches)


class Refused(ClientError):
    """The service answered, and the answer is no.

    Attributes:
        problem: What it said.
        retry_after_s: When it said to ask again, if it did.
    """

    def __init__(self, problem: Problem, *, retry_after_s: float | None = None) -> None:
        super().__init__(str(problem))
        self.problem = problem
        self.retry_after_s = retry_after_s


class Unauthorized(Refused):
    """401: no token, or none that the service knows."""


class Forbidden(Refused):
    """403: the token's role does not allow the call."""


class NotFound(Refused):
    """404: absent, or not this token's to see."""


class Conflict(Refused):
    """409: the state of the thing does not allow it now."""


class PreconditionFailed(Refused):
    """412 or 428: it has changed since it was read, or its revision was not named."""


class TooLarge(Refused):
    """413: more bytes than the service takes."""


class Invalid(Refused):
    """400, 415 or 422: the request can't be read, or fields of it are wrong."""


class TooMany(Refused):
    """429: over a rate, or over a cap of streams."""


class ServiceFailed(Refused):
    """5xx: the service can't, now or at all."""


_BY_STATUS: dict[int, type[Refused]] = {
    400: Invalid,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    412: PreconditionFailed,
    413: TooLarge,
    415: Invalid,
    422: Invalid,
    428: PreconditionFailed,
    429: TooMany,
}


def refusal(problem: Problem, *, retry_after_s: float | None = None) -> Refused:
    """The error that a problem document stands for."""
    kind = ServiceFailed if problem.status >= 500 else _BY_STATUS.get(problem.status, Refused)
    return kind(problem, retry_after_s=retry_after_s)
