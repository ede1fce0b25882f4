"""Caps: how often one caller may ask, and how many streams may stand open."""

from __future__ import annotations

import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable

from hdet_service.problems import TooMany

Clock = Callable[[], float]

_MAX_CALLERS = 4096
"""Callers that are remembered; the one not seen for longest is forgotten, with a full bucket."""


class RequestRates:
    """One token bucket a caller.

    Args:
        per_s: requests per second that refill a bucket.
        burst: requests that a full bucket holds.
    """

    def __init__(self, per_s: float, burst: int, clock: Clock = time.monotonic) -> None:
        self._per_s = per_s
        self._burst = float(burst)
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # caller → (tokens, at)

    def take(self, caller: str) -> None:
        """Count one request.

        Raises:
            TooMany: the bucket is empty; says when it no longer is.
        """
        now = self._clock()
        tokens, at = self._buckets.pop(caller, (self._burst, now))
        # A clock that steps back must not drain anyone's bucket.
        tokens = min(self._burst, tokens + max(0.0, now - at) * self._per_s)
        allowed = tokens >= 1
        self._buckets[caller] = (tokens - 1 if allowed else tokens, now)
        if len(self._buckets) > _MAX_CALLERS:
            self._buckets.popitem(last=False)
        if not allowed:
            wait_s = (1 - tokens) / self._per_s
            raise TooMany(
                f"more than {self._per_s:g} requests per second (burst {self._burst:g}); wait "
                f"{math.ceil(wait_s * 1000)} ms",
                retry_after_s=wait_s,
            )


class StreamSlots:
    """How many event streams stand open, of all callers and of each."""

    def __init__(self, total: int, per_caller: int) -> None:
        self._total = total
        self._per_caller = per_caller
        self._open: Counter[str] = Counter()

    @property
    def count(self) -> int:
        """Streams that stand open."""
        return self._open.total()

    def take(self, caller: str) -> None:
        """Take a slot; whoever takes one gives it back.

        Raises:
            TooMany: names the cap.
        """
        if self._open[caller] >= self._per_caller:
            raise TooMany(
                f"{self._open[caller]} streams of this token are open, its cap is {self._per_caller}; close "
                "one, or read pages",
                retry_after_s=5,
            )
        if self.count >= self._total:
            raise TooMany(
                f"{self.count} streams are open, the service's cap is {self._total}; try again, or read "
                "pages",
                retry_after_s=5,
            )
        self._open[caller] += 1

    def give_back(self, caller: str) -> None:
        """One stream of this caller has ended."""
        self._open[caller] -= 1
        if not self._open[caller]:
            del self._open[caller]
