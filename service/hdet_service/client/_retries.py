"""When a call is made again: only where a second one can't do harm. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_PASSING = frozenset({429, 502, 503, 504})
"""Statuses that say "not now"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    """How often and how patiently a call is made again.

    A call is repeated after a broken connection or a passing refusal, and only if it is repeatable: GET,
    PUT, DELETE, and a POST that carries an ``Idempotency-Key``. Others are repeated only where the
    connection was refused, since nothing was sent then.
    """

    max_attempts: int = 5
    """Calls in all, the first one included; 1 never repeats."""
    first_wait_s: float = 0.2
    """Before the second call; doubles each time."""
    max_wait_s: float = 10.0
    """No wait is longer; a ``Retry-After`` beyond it is told to the caller instead."""

    def wait_after_answer(
        self, *, attempt: int, status: int, is_repeatable: bool, retry_after_s: float | None
    ) -> float | None:
        """Seconds until the next call, or None where the answer stands."""
        # A conflict that says when to come again: the first call with the same key is still being answered.
        is_passing = status in _PASSING or (status == 409 and retry_after_s is not None)
        if not is_passing or not is_repeatable or attempt >= self.max_attempts:
            return None
        if retry_after_s is not None:
            return retry_after_s if retry_after_s <= self.max_wait_s else None
        return self._backoff_s(attempt)

    def wait_after_break(self, *, attempt: int, is_repeatable: bool, was_sent: bool) -> float | None:
        """Seconds until the next call after a broken connection, or None where it must not be repeated."""
        if attempt >= self.max_attempts or (was_sent and not is_repeatable):
            return None
        return self._backoff_s(attempt)

    def _backoff_s(self, attempt: int) -> float:
        return float(min(self.first_wait_s * 2 ** (attempt - 1), self.max_wait_s))


def retry_after_s(header: str | None, *, now: datetime | None = None) -> float | None:
    """Seconds of a ``Retry-After`` header, which holds seconds or a date; None where there is none."""
    if not header:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        at = parsedate_to_datetime(header)
    except ValueError:
        return None
    return max(0.0, (at - (now or datetime.now(UTC))).total_seconds())
