"""What this process saw itself: requests, submissions, open streams. They begin anew with it.

Prometheus takes such a start for what it is; what must outlive it stands in the database (`counts`).
"""

from __future__ import annotations

import bisect
from collections import Counter as Tally
from collections.abc import Iterator
from contextlib import contextmanager

from hdet_service.metrics.catalogue import EXCHANGE_DURATION, HTTP_DURATION, SubmissionResult

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
UNMATCHED_ROUTE = "unmatched"
"""A path that no route matches; the path itself is the caller's, and unbounded."""


class RequestTally:
    """Counts of one process. Used on the event loop's thread; a scrape reads copies."""

    def __init__(self) -> None:
        self.requests: Tally[tuple[str, str, str]] = Tally()
        """By method, route and status."""
        self.durations: dict[tuple[str, str], list[int]] = {}
        """By method and route: requests in each bucket, not cumulative; the last is infinity's."""
        self.duration_sums_s: Tally[tuple[str, str]] = Tally()
        self.exchanges = [0] * (len(EXCHANGE_DURATION.buckets) + 1)
        """In each bucket, not cumulative; the last is infinity's."""
        self.exchange_sum_s = 0.0
        self.submissions: Tally[str] = Tally()
        self.sse_clients = 0

    def observe_request(
        self, method: str, route: str | None, status: int, seconds: float, *, is_stream: bool = False
    ) -> None:
        """Count a request that was answered.

        Args:
            method: Any but the usual ones count as ``OTHER``.
            route: The route's template, None where none matched.
            seconds: From the request to its answer's end.
            is_stream: Its duration is the client's, and not observed.
        """
        method = method if method in METHODS else "OTHER"
        route = route or UNMATCHED_ROUTE
        status = status if 100 <= status < 600 else 500
        self.requests[method, route, str(status)] += 1
        if is_stream:
            return
        buckets = self.durations.setdefault((method, route), [0] * (len(HTTP_DURATION.buckets) + 1))
        buckets[bisect.bisect_left(HTTP_DURATION.buckets, seconds)] += 1
        self.duration_sums_s[method, route] += seconds  # type: ignore[assignment]  # a Counter adds floats too

    def observe_exchange(self, seconds: float) -> None:
        """Count a report that was answered, whatever the answer was."""
        self.exchanges[bisect.bisect_left(EXCHANGE_DURATION.buckets, seconds)] += 1
        self.exchange_sum_s += seconds

    def observe_submission(self, result: SubmissionResult) -> None:
        """Count a submission by how it was answered."""
        self.submissions[str(result)] += 1

    @contextmanager
    def stream(self) -> Iterator[None]:
        """An event stream is open inside."""
        self.sse_clients += 1
        try:
            yield
        finally:
            self.sse_clients -= 1
