"""The metrics at `/metrics`: one target that tells everything of the service and of its runs.

metrics = Metrics(store)
metrics.observe_request(method, route_template, status, seconds)      # after an answer
with metrics.stream(): ...                                            # while an event stream is open
metrics.observe_submission(SubmissionResult.CREATED)
count_round(session, job, ...) / add_counts(session, job_id, ...)     # in a transaction: counters of runs
metrics.observe_round(job_id, RunView(...))                           # after its commit; saves a scrape work
text = await metrics.scrape()
"""

from __future__ import annotations

from hdet_service.metrics.catalogue import (
    METRICS,
    OVERRIDES,
    REPLICA_FAILURES,
    ROLLBACKS,
    SYNC_FAILURES,
    Metric,
    OverrideResult,
    SubmissionResult,
    SyncFailure,
)
from hdet_service.metrics.counts import Restart, add_counts, count_round, one
from hdet_service.metrics.runs import RunView
from hdet_service.metrics.scrape import CONTENT_TYPE, Metrics

__all__ = [
    "CONTENT_TYPE",
    "METRICS",
    "OVERRIDES",
    "REPLICA_FAILURES",
    "ROLLBACKS",
    "SYNC_FAILURES",
    "Metric",
    "Metrics",
    "OverrideResult",
    "Restart",
    "RunView",
    "SubmissionResult",
    "SyncFailure",
    "add_counts",
    "count_round",
    "one",
]
