"""Durations of rules, which a test may shrink so that it lives through an alert in seconds."""

from __future__ import annotations

import math
from dataclasses import dataclass

MINUTE = 60.0
HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class TimeScale:
    """Every duration of the rules, times one factor: 1 is what is shipped."""

    factor: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.factor) and 0 < self.factor <= 1):
            raise ValueError(
                f"time scale {self.factor} must be above 0 and at most 1; 1 is what is shipped, "
                f"0.01 makes five minutes three seconds"
            )

    def seconds(self, seconds: float) -> str:
        """A threshold in seconds, as a number of PromQL."""
        return f"{seconds * self.factor:.6g}"

    def span(self, seconds: float) -> str:
        """A duration as Prometheus writes it, to the millisecond: ``5m``, ``1h``, ``3s``, ``300ms``."""
        milliseconds = max(1, round(seconds * self.factor * 1000))
        for unit, size in (("h", 3_600_000), ("m", 60_000), ("s", 1000)):
            if milliseconds % size == 0:
                return f"{milliseconds // size}{unit}"
        return f"{milliseconds}ms"
