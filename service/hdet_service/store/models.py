"""The tables. Times are seconds since the epoch, UTC; JSON columns hold what the API or the codec writes.

Order is by id, never by time: the clock may step back. A JSON value is replaced, not changed in
place: what changes inside it is not seen. The schema follows in ``migrations/``; a test compares both.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, Text, false
from sqlalchemy.orm import DeclarativeBase, Mapped, defer, mapped_column

# None is NULL, not JSON's null: `IS NULL` finds it.
_JSON = JSON(none_as_null=True)


class Base(DeclarativeBase):
    """Root of the tables."""

    type_annotation_map = {dict[str, Any]: _JSON, list[Any]: _JSON}  # noqa: RUF012  # SQLAlchemy's own form


_LAST = 1
"""Sort order of columns that may be large: a page of jobs then never reads past the small ones."""


class ControllerRow(Base):
    """One row: which controller owns this database, and how often it has started."""

    __tablename__ = "controller"

    id: Mapped[int] = mapped_column(primary_key=True)  # always 1
    epoch: Mapped[int]
    """Counts starts; an answer of an older epoch is refused."""
    pid: Mapped[int]
    started_s: Mapped[float]
    is_draining: Mapped[bool] = mapped_column(default=False)


class Job(Base):
    """A job: what was asked for, where it stands, and its schedule's newest state."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index("jobs_by_state", "state", "id"),
        Index("jobs_by_owner", "owner", "id"),
        Index("jobs_by_name", "name", "id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    """ULID: sorts by creation."""
    name: Mapped[str]
    owner: Mapped[str]
    """Name of the token that submitted it."""
    spec: Mapped[dict[str, Any]] = mapped_column(sort_order=_LAST)
    state: Mapped[str]
    reason: Mapped[str]
    message: Mapped[str] = mapped_column(Text, default="")
    priority: Mapped[int] = mapped_column(default=0)
    created_s: Mapped[float]
    updated_s: Mapped[float]
    started_s: Mapped[float | None]
    """First time that it entered STARTING."""
    finished_s: Mapped[float | None] = mapped_column(index=True)
    version: Mapped[int] = mapped_column(default=1)
    """Counts changes of the job itself: its ETag."""

    # Its processes.
    submission: Mapped[int] = mapped_column(default=0)
    """How often a driver was started for it."""
    ray_submission_id: Mapped[str | None]
    """Not used any more: it follows from the job's id and the number of its driver."""
    failures: Mapped[int] = mapped_column(default=0)
    """Failures that were retried, or would have been."""
    not_before_s: Mapped[float | None]
    """A retry waits until then."""
    wanted: Mapped[str | None]
    """Where an operator wants it: ``paused``, ``canceled``, ``rolled_back``; None leaves it running."""
    resume_round: Mapped[int | None]
    """The next driver starts from this round's checkpoint (rollback)."""

    # Its schedule, owned here once a worker has sent it.
    attempt: Mapped[int] = mapped_column(default=0)
    """Newest attempt; older ones are refused. 0: no worker has opened the run yet."""
    round: Mapped[int] = mapped_column(default=0)
    """The round that is running: reports of all before it are stored."""
    step: Mapped[int] = mapped_column(default=0)
    total_steps: Mapped[int | None]
    steps_per_s: Mapped[float | None]
    replicas_present: Mapped[int] = mapped_column(default=0)
    schedule: Mapped[dict[str, Any] | None] = mapped_column(sort_order=_LAST)
    """`state_to_json` of the state before the running round."""
    schedule_before: Mapped[dict[str, Any] | None] = mapped_column(sort_order=_LAST)
    """The one before that: an answer that got lost is decided anew from it."""
    plan: Mapped[dict[str, Any] | None] = mapped_column(sort_order=_LAST)
    """`to_json` of the running round's plan."""
    plan_digest: Mapped[str | None]
    revision: Mapped[int] = mapped_column(default=0)
    """Counts operators' changes of the schedule: the ETag of ``/schedule``."""
    last_report_s: Mapped[float | None]
    last_checkpoint_s: Mapped[float | None]
    storage_path: Mapped[str | None]
    """Folder of the run with its checkpoints, told by the driver."""


WITHOUT_SCHEDULE = (defer(Job.schedule), defer(Job.schedule_before), defer(Job.plan))
"""Options of a query for jobs' pages: ``select(Job).options(*WITHOUT_SCHEDULE)``."""


class JobLabel(Base):
    """A label of a job, for filters."""

    __tablename__ = "job_labels"
    __table_args__ = (Index("labels_by_value", "key", "value", "job_id"),)

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]


class Transition(Base):
    """When a job entered which state, and why."""

    __tablename__ = "transitions"
    __table_args__ = (Index("transitions_by_job", "job_id", "id"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    state: Mapped[str]
    reason: Mapped[str]
    message: Mapped[str] = mapped_column(Text, default="")
    at_s: Mapped[float]


class LedgerStart(Base):
    """Where a job's ledger starts: its first line."""

    __tablename__ = "ledger_starts"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    round: Mapped[int]
    """Round of that state: 0, or the oldest full round where older ones were thinned."""
    header: Mapped[dict[str, Any]]
    """`state_to_json` of the state."""


class Round(Base):
    """One line of a job's ledger."""

    __tablename__ = "rounds"
    __table_args__ = (Index("rounds_of_chain", "job_id", "is_abandoned", "round", "is_thinned"),)

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)
    round: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str] = mapped_column(Text)
    """The line itself (`hdet_ray.core.replay.item_line`): never parsed and written anew."""
    at_s: Mapped[float]
    is_abandoned: Mapped[bool] = mapped_column(default=False)
    """A newer attempt went back before it."""
    is_thinned: Mapped[bool] = mapped_column(default=False, server_default=false())
    """Only a summary is left of it (`hdet_service.store.thinning.summary_of`)."""


class Command(Base):
    """What an operator asked of a schedule, in order: folded into the report of one round."""

    __tablename__ = "commands"
    __table_args__ = (Index("commands_by_job", "job_id", "id"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    body: Mapped[dict[str, Any]]
    """JSON of an Override, Removal, Freeze or SetBounds with its ``kind``."""
    override_id: Mapped[str | None]
    folded_round: Mapped[int | None]
    """Its commands stand in this round's report. None: it waits."""
    at_s: Mapped[float]


class OverrideRow(Base):
    """An override as the API shows it."""

    __tablename__ = "overrides"
    __table_args__ = (Index("overrides_by_job", "job_id", "id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    """ULID."""
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    body: Mapped[dict[str, Any]]
    """hparam, group, op, value, apply_at_round, expires_after_rounds, reason."""
    state: Mapped[str]
    """pending, applied, expired, removed, refused."""
    applied_round: Mapped[int | None]
    refusal: Mapped[str] = mapped_column(Text, default="")
    created_by: Mapped[str]
    created_s: Mapped[float]
    updated_s: Mapped[float]


class Event(Base):
    """What happened to a job, for people and streams; ids only grow."""

    __tablename__ = "events"
    __table_args__ = (Index("events_by_job", "job_id", "id"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    type: Mapped[str]
    """state, round, override, checkpoint, resize, rollback, quarantine, audit, retry, …"""
    data: Mapped[dict[str, Any]]
    at_s: Mapped[float]


class Audit(Base):
    """Who changed what, from what to what, and why; outlives the job."""

    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    actor: Mapped[str]
    """Name of a token."""
    action: Mapped[str]
    job_id: Mapped[str | None] = mapped_column(index=True)
    before: Mapped[dict[str, Any] | None]
    after: Mapped[dict[str, Any] | None]
    reason: Mapped[str] = mapped_column(Text, default="")
    at_s: Mapped[float]


class Idempotency(Base):
    """The first answer to a submission with a key."""

    __tablename__ = "idempotency"
    __table_args__ = (Index("idempotency_by_time", "at_s"), Index("idempotency_by_job", "job_id"))

    owner: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    body_digest: Mapped[str]
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    at_s: Mapped[float]


class Token(Base):
    """A bearer token; only its hash is kept."""

    __tablename__ = "tokens"

    name: Mapped[str] = mapped_column(primary_key=True)
    role: Mapped[str]
    """metrics, viewer, submitter, operator."""
    digest: Mapped[str] = mapped_column(unique=True)
    """SHA-256 of the token (which is random, 256 bits), hexadecimal."""
    created_s: Mapped[float]
    revoked_s: Mapped[float | None]


class Package(Base):
    """An uploaded working directory: a file named by its own hash in ``$HDET_HOME/packages``."""

    __tablename__ = "packages"

    sha256: Mapped[str] = mapped_column(primary_key=True)
    size_bytes: Mapped[int]
    created_by: Mapped[str]
    created_s: Mapped[float]
    used_s: Mapped[float]


class Counter(Base):
    """A counter of a job's metrics that must outlive a restart of the controller."""

    __tablename__ = "counters"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    """Metric and labels in the exposition's form, as ``hdet_sync_failures_total{reason="x"}``."""
    value: Mapped[float]
