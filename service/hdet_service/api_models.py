"""What the service answers, as models: for the API's description and the tests that hold answers to it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from hdet_service.schemas import JobSpec
from hdet_service.states import Reason, State

ByHParam = dict[str, dict[str, float]]
"""``{"lr": {"0": 3e-4}}``: hyperparameter, then optimizer parameter group."""


class Answer(BaseModel):
    """Fields may be added in later versions."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class FieldProblem(Answer):
    """One offending field."""

    field: str
    """Its path, as `replicas.min`; a header or parameter by its name."""
    message: str


class Problem(Answer):
    """An RFC 9457 problem document."""

    type: str
    """Stable: `urn:hdet:problem:<slug>`."""
    title: str
    status: int
    detail: str
    """Value, bound and remedy."""
    instance: str | None = None
    """The path that was asked for."""
    errors: list[FieldProblem] = Field(default_factory=list)


class Progress(Answer):
    """How far a job is; `null` where that is not known yet."""

    step: int
    total_steps: int | None
    steps_per_s: float | None
    eta_s: float | None


class ReplicaCount(Answer):
    """Replicas asked for, and replicas in the newest report."""

    wanted: int
    present: int


class TransitionAnswer(Answer):
    """When a job entered a state, and why."""

    state: State
    reason: Reason
    message: str
    at: str
    """RFC 3339."""


class JobAnswer(Answer):
    """A job. Times are RFC 3339, UTC."""

    id: str
    """A ULID: sorts by creation."""
    name: str
    owner: str
    """Name of the token that submitted it."""
    state: State
    reason: Reason
    message: str
    attempt: int
    """Newest attempt of its training; 0 before the first."""
    submission: int
    """How often its driver was started."""
    failures: int
    priority: int
    labels: dict[str, str]
    progress: Progress
    replicas: ReplicaCount
    links: dict[str, str]
    created_at: str
    updated_at: str
    started_at: str | None
    finished_at: str | None


class JobDetail(JobAnswer):
    """A job with its spec and its states so far."""

    spec: JobSpec
    transitions: list[TransitionAnswer]


class JobPage(Answer):
    """A page of jobs, newest first."""

    items: list[JobAnswer]
    next: str | None
    """Cursor of the next page; `null` on the last."""


class JobPreview(Answer):
    """What submitting would do."""

    name: str
    owner: str
    entrypoint: str
    entrypoint_kind: Literal["workload", "function", "command"]
    workers: int
    """Processes that train."""
    replicas: int
    cpus: float
    gpus: float
    storage_path: str
    state: State
    reason: Reason
    """`Submitted` if it would start at once, else `WaitingForSlot`."""
    queue: dict[str, Any]
    spec: JobSpec
    """With defaults filled in."""


class EventAnswer(Answer):
    """Something that happened to a job."""

    id: int
    """Only grows."""
    job_id: str
    type: str
    data: dict[str, Any]
    at_s: float
    """Seconds since the epoch, UTC."""


class EventPage(Answer):
    """A page of events, oldest first."""

    items: list[EventAnswer]
    next: str | None


class LogItem(Answer):
    """A line of output."""

    id: str
    """`<submission>:<bytes>`: the place right behind it."""
    submission: int
    """Which of the job's drivers wrote it."""
    line: str


class LogPage(Answer):
    """A page of lines, oldest first."""

    items: list[LogItem]
    next: str | None


class ReplicaPage(Answer):
    """Replicas by number."""

    items: list[dict[str, Any]]
    next: str | None


class CheckpointAnswer(Answer):
    """A complete checkpoint."""

    round: int
    step: int
    attempt: int
    path: str
    at_s: float | None
    size_bytes: int | None


class CheckpointPage(Answer):
    """All that are kept, oldest first."""

    items: list[CheckpointAnswer]
    next: str | None = None


class OverrideAnswer(Answer):
    """An override, and what became of it."""

    id: str
    hparam: str
    op: Literal["set", "scale"]
    value: float
    group: int | None
    apply_at_round: int | None
    expires_after_rounds: int | None
    reason: str
    state: Literal["pending", "applied", "expired", "removed", "refused"]
    applied_round: int | None
    """Set by the report that confirms it."""
    refusal: str
    """Why it was refused; empty otherwise."""
    created_by: str
    created_at: str
    updated_at: str
    applies_at_round: int | None = None
    """Where it was just asked for: the round that it will apply at, as things stand."""


class OverridePreview(Answer):
    """What an override would change."""

    model_config = ConfigDict(extra="allow")


class SteeringAnswer(Answer):
    """How the controller is steered now."""

    model_config = ConfigDict(extra="allow")


class ScheduleAnswer(Answer):
    """The schedule as it stands."""

    phase: str
    round: int
    step: int
    peak: ByHParam
    base: ByHParam
    replicas: list[dict[str, Any]]
    points: list[dict[str, Any]]
    velocity: dict[str, Any]
    bounds: dict[str, list[float]]
    one_cycle: ByHParam
    """What one-cycle alone would do now."""
    overrides: list[dict[str, Any]]
    revision: int
    """Counts operators' changes; the ETag."""


class HistoryPage(Answer):
    """A page of the ledger, oldest first: `hdet replay` reads its items."""

    start: dict[str, Any] | None
    """The ledger's first line: version, and the initial state or, where old rounds were thinned, that of the
    oldest round that is whole; `null` before a worker opened the run."""
    items: list[dict[str, Any]]
    next: str | None


class PackageAnswer(Answer):
    """An uploaded package."""

    sha256: str
    size_bytes: int


class Whoami(Answer):
    """The caller."""

    name: str
    role: Literal["metrics", "viewer", "submitter", "operator"]


class TokenAnswer(Whoami):
    """A token without its secret."""

    created_at: str
    revoked_at: str | None


class NewToken(TokenAnswer):
    """A token, with its secret: shown this once."""

    token: str


class TokenPage(Answer):
    """All tokens by name."""

    items: list[TokenAnswer]
    next: str | None


class AuditItem(Answer):
    """A change that somebody made."""

    id: int
    actor: str
    action: str
    job_id: str | None
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    reason: str
    at: str


class AuditPage(Answer):
    """A page of the audit, newest first."""

    items: list[AuditItem]
    next: str | None


class DrainAnswer(Answer):
    """A drain, or its end."""

    draining: bool
    jobs: list[str]
    """Ids of the jobs that pause, or go on."""


class Health(Answer):
    """Alive or ready."""

    status: Literal["alive", "ready"]
