"""Every metric that the service exposes: its name, type, labels and what it says. Nothing else is exposed.

The page `docs/metrics.md` is held against this list by a test. Labels take their values from closed sets, but
for ``run`` (a job's id), ``replica`` (a slot number below N) and ``hparam``/``group`` (what the job's own
schedule has); how many series one run may have of these is bounded below.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, get_args

from hdet_ray.core.plan import Phase
from hdet_service.states import Reason, State

MAX_REPLICA_SERIES = 8192
"""Of `hdet_replica_hparam` for one run: further hyperparameters and groups are left out whole."""
MAX_HPARAMS = 256
"""Hyperparameters and groups of one run, of any other metric with these labels."""


class SyncFailure(StrEnum):
    """Why a boundary did not go as planned."""

    LATE = "late"
    """Rank 0 decided alone, and its report came afterwards."""
    RESYNC = "resync"
    """Controller and worker held different states; the worker's was taken."""
    FENCED = "fenced"
    """An attempt that a newer one has replaced still reported."""
    INTERRUPTED = "interrupted"
    """The group went down before it got to the boundary, or at it."""


class OverrideResult(StrEnum):
    """What became of an override; one override counts once at each station that it passes."""

    ACCEPTED = "accepted"
    APPLIED = "applied"
    EXPIRED = "expired"
    REMOVED = "removed"
    REFUSED = "refused"


class SubmissionResult(StrEnum):
    """How a submission was answered."""

    CREATED = "created"
    REPEATED = "repeated"
    """The answer of the first request with this idempotency key."""
    REFUSED = "refused"


class Direction(StrEnum):
    """Where the number of replicas went."""

    UP = "up"
    DOWN = "down"


class QuarantineReason(StrEnum):
    """Why a replica was left out of an average."""

    NONFINITE = "nonfinite"
    EXPLODED = "exploded"


FAILURE_REASONS = (
    Reason.REPLICA_LOST,
    Reason.PREEMPTED,
    Reason.DRIVER_LOST,
    Reason.HEAD_LOST,
    Reason.NON_FINITE,
    Reason.ROLLBACK_LIMIT,
    Reason.SEARCH_FAILED,
    Reason.ENTRYPOINT_ERROR,
    Reason.CHECKPOINT_ERROR,
    Reason.RETRIES_EXHAUSTED,
)
"""Why replicas went down before the run's end."""

_SHORT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SYNC_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_RECOVERY_S = (1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric family."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    help: str
    """One sentence, with the unit where the name has none."""
    labels: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    """All values of the last label, where they are a closed set: each has a series from the start."""
    buckets: tuple[float, ...] = ()
    """Upper bounds of a histogram, in seconds, without infinity."""
    when: str = "always"
    """When there is a series."""

    @property
    def is_of_run(self) -> bool:
        """Whether a run has it."""
        return "run" in self.labels


_RUN = ("run",)
_HPARAM = ("run", "hparam", "group")
_REPORTED = "once a round was reported"

BUILD_INFO = Metric(
    name="hdet_build_info", kind="gauge", labels=("version",), help="1; its label is the service's version."
)
JOBS = Metric(
    name="hdet_jobs",
    kind="gauge",
    labels=("state",),
    values=tuple(State),
    help="Jobs in the database by state.",
)
JOB_SUBMISSIONS = Metric(
    name="hdet_job_submissions_total",
    kind="counter",
    labels=("result",),
    values=tuple(SubmissionResult),
    help="Submissions since this controller started, by how they were answered.",
)
PHASE = Metric(
    name="hdet_phase",
    kind="gauge",
    labels=(*_RUN, "phase"),
    values=get_args(Phase),
    help="1 for the phase of the running round, 0 for the others.",
    when="once a worker opened the run",
)
ROUND = Metric(
    name="hdet_round", kind="gauge", labels=_RUN, help="The round that is running; rounds count from 0."
)
ROUND_EXPECTED = Metric(
    name="hdet_round_expected_seconds",
    kind="gauge",
    labels=_RUN,
    help="How long the running round should take: its steps at the pace of the newest report.",
    when=_REPORTED,
)
STEP = Metric(name="hdet_step", kind="gauge", labels=_RUN, help="Optimizer steps until the newest boundary.")
BASE_HPARAM = Metric(
    name="hdet_base_hparam",
    kind="gauge",
    labels=_HPARAM,
    help="Value at the centre of the spread at the running round's first step.",
    when="once a worker opened the run",
)
REPLICA_HPARAM = Metric(
    name="hdet_replica_hparam",
    kind="gauge",
    labels=(*_HPARAM, "replica"),
    help="A replica's value at the running round's first step.",
    when="once a worker opened the run",
)
AT_BOUND = Metric(
    name="hdet_hparam_at_bound",
    kind="gauge",
    labels=_HPARAM,
    help="1 where the value that bounds mean (a rate's peak, another's base) lies on one of them, else 0.",
    when="outside the search",
)
SEARCH_BEST = Metric(
    name="hdet_search_best_hparam",
    kind="gauge",
    labels=_HPARAM,
    help="Best value that the search has found so far; its result once it is over.",
    when="where there is a search",
)
SEARCH_DEAD = Metric(
    name="hdet_search_dead_total",
    kind="counter",
    labels=_RUN,
    help="Candidates of the search that died: not finite, or worse than the untrained weights.",
    when="where there is a search",
)
SEARCH_STEPS = Metric(
    name="hdet_search_steps_total",
    kind="counter",
    labels=_RUN,
    help="Optimizer steps that the search took; a round that a restart repeats counts again.",
    when="where there is a search",
)
REPLICA_LOSS = Metric(
    name="hdet_replica_loss",
    kind="gauge",
    labels=(*_RUN, "replica"),
    help="A replica's mean training loss in the newest round, in units of the loss; NaN where not finite.",
    when="where the loop passes its loss",
)
REPLICA_WEIGHT = Metric(
    name="hdet_replica_weight_ratio",
    kind="gauge",
    labels=(*_RUN, "replica"),
    help="A replica's weight in the newest round's verdict: 1 healthy, 0 left out.",
    when=_REPORTED,
)
LOSS_SPREAD = Metric(
    name="hdet_loss_spread",
    kind="gauge",
    labels=_RUN,
    help="Highest minus lowest mean loss of the healthy replicas in the newest round, in units of the loss.",
    when="with two healthy replicas or more",
)
AUTOLR_DELTA = Metric(
    name="hdet_autolr_delta",
    kind="gauge",
    labels=_HPARAM,
    help="Delta of the paper's eq. 6 at the newest update, in the hyperparameter's unit or its log.",
    when="where eqs. 4-9 run",
)
AUTOLR_VELOCITY = Metric(
    name="hdet_autolr_velocity",
    kind="gauge",
    labels=_HPARAM,
    help="Velocity of the paper's eq. 7, in the hyperparameter's unit or its log.",
    when="where eqs. 4-9 run",
)
DIVERGENCE = Metric(
    name="hdet_param_divergence_ratio",
    kind="gauge",
    labels=_RUN,
    help="Largest distance of a replica's parameters from the mean, over the mean's norm, before an average.",
    when="where the newest round ended in an average",
)
REPLICAS = Metric(
    name="hdet_replicas",
    kind="gauge",
    labels=(*_RUN, "state"),
    values=("wanted", "present"),
    help="Replicas that should train now (0 for a job that waits for a slot, is paused, stopping or over), "
    "and those that do.",
)
REPLICA_FAILURES = Metric(
    name="hdet_replica_failures_total",
    kind="counter",
    labels=(*_RUN, "reason"),
    values=tuple(FAILURE_REASONS),
    help="Times that a run's replicas went down before its end, whether they came back or not.",
)
QUARANTINES = Metric(
    name="hdet_replica_quarantines_total",
    kind="counter",
    labels=(*_RUN, "reason"),
    values=tuple(QuarantineReason),
    help="Replicas left out of an average because they were unhealthy.",
)
ROLLBACKS = Metric(
    name="hdet_rollbacks_total",
    kind="counter",
    labels=_RUN,
    help="Times that a run went back: to the newest boundary for its health, or to a round asked for.",
)
RECOVERY_DURATION = Metric(
    name="hdet_recovery_duration_seconds",
    kind="histogram",
    labels=_RUN,
    buckets=_RECOVERY_S,
    help="Time without a report, from an attempt's last one to the next attempt's first; pauses don't count.",
)
RESIZES = Metric(
    name="hdet_resizes_total",
    kind="counter",
    labels=(*_RUN, "direction"),
    values=tuple(Direction),
    help="Changes of the number of replicas.",
)
SYNC_DURATION = Metric(
    name="hdet_sync_duration_seconds",
    kind="histogram",
    labels=_RUN,
    buckets=_SYNC_S,
    help="Time that a boundary took for averaging or putting back.",
)
SYNC_BYTES = Metric(
    name="hdet_sync_bytes_total",
    kind="counter",
    labels=_RUN,
    help="Bytes that rank 0 put through averages; other boundaries move none.",
)
SAMPLES = Metric(
    name="hdet_samples_total",
    kind="counter",
    labels=_RUN,
    help="Samples that all ranks together trained on; a round that a restart repeats counts again.",
    when="where attach() got a sampler that counts",
)
SYNC_FAILURES = Metric(
    name="hdet_sync_failures_total",
    kind="counter",
    labels=(*_RUN, "reason"),
    values=tuple(SyncFailure),
    help="Boundaries that did not go as planned.",
)
LAST_SYNC = Metric(
    name="hdet_last_sync_timestamp_seconds",
    kind="gauge",
    labels=_RUN,
    help="When the newest round's report came, in seconds since the epoch.",
    when=_REPORTED,
)
LAST_CHECKPOINT = Metric(
    name="hdet_last_checkpoint_timestamp_seconds",
    kind="gauge",
    labels=_RUN,
    help="When the newest checkpoint was reported, in seconds since the epoch.",
    when="once there is a checkpoint",
)
OVERRIDES = Metric(
    name="hdet_schedule_overrides_total",
    kind="counter",
    labels=(*_RUN, "result"),
    values=tuple(OverrideResult),
    help="Overrides by the stations that they passed.",
)
OVERRIDE_ACTIVE = Metric(
    name="hdet_override_active",
    kind="gauge",
    labels=_RUN,
    help="Overrides that are applied now.",
)
EXCHANGE_DURATION = Metric(
    name="hdet_exchange_duration_seconds",
    kind="histogram",
    buckets=_SHORT_S,
    help="Time that this controller took to answer a boundary's report: decided, and on disk.",
)
HTTP_REQUESTS = Metric(
    name="hdet_http_requests_total",
    kind="counter",
    labels=("method", "route", "status"),
    help="Requests that were answered since this controller started; route is the template.",
    when="once there was one",
)
HTTP_DURATION = Metric(
    name="hdet_http_request_duration_seconds",
    kind="histogram",
    labels=("method", "route"),
    buckets=_SHORT_S,
    help="Time from a request to its answer's end; streams are left out.",
    when="once there was one",
)
SSE_CLIENTS = Metric(name="hdet_sse_clients", kind="gauge", help="Event streams that are open.")

METRICS: tuple[Metric, ...] = (
    BUILD_INFO,
    JOBS,
    JOB_SUBMISSIONS,
    PHASE,
    ROUND,
    ROUND_EXPECTED,
    STEP,
    BASE_HPARAM,
    REPLICA_HPARAM,
    AT_BOUND,
    SEARCH_BEST,
    SEARCH_DEAD,
    SEARCH_STEPS,
    REPLICA_LOSS,
    REPLICA_WEIGHT,
    LOSS_SPREAD,
    AUTOLR_DELTA,
    AUTOLR_VELOCITY,
    DIVERGENCE,
    REPLICAS,
    REPLICA_FAILURES,
    QUARANTINES,
    ROLLBACKS,
    RECOVERY_DURATION,
    RESIZES,
    SYNC_DURATION,
    SYNC_BYTES,
    SAMPLES,
    SYNC_FAILURES,
    LAST_SYNC,
    LAST_CHECKPOINT,
    OVERRIDES,
    OVERRIDE_ACTIVE,
    EXCHANGE_DURATION,
    HTTP_REQUESTS,
    HTTP_DURATION,
    SSE_CLIENTS,
)
"""In the order in which they are exposed."""
