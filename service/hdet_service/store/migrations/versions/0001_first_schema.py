"""The first schema: jobs, their ledgers, commands and events, and who may do what."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables."""
    _make_jobs()
    _make_ledgers()
    _make_operations()
    _make_access()


def _of_job(*, primary_key: bool = False) -> sa.Column[str]:
    to_job = sa.ForeignKey("jobs.id", ondelete="CASCADE")
    return sa.Column("job_id", sa.String(), to_job, primary_key=primary_key, nullable=False)


def _make_jobs() -> None:
    op.create_table(
        "controller",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("started_s", sa.Double(), nullable=False),
        sa.Column("is_draining", sa.Boolean(), nullable=False),
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("created_s", sa.Double(), nullable=False),
        sa.Column("updated_s", sa.Double(), nullable=False),
        sa.Column("started_s", sa.Double()),
        sa.Column("finished_s", sa.Double()),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("submission", sa.Integer(), nullable=False),
        sa.Column("ray_submission_id", sa.String()),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("not_before_s", sa.Double()),
        sa.Column("wanted", sa.String()),
        sa.Column("resume_round", sa.Integer()),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("total_steps", sa.Integer()),
        sa.Column("steps_per_s", sa.Double()),
        sa.Column("replicas_present", sa.Integer(), nullable=False),
        sa.Column("plan_digest", sa.String()),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("last_report_s", sa.Double()),
        sa.Column("last_checkpoint_s", sa.Double()),
        sa.Column("storage_path", sa.String()),
        # What may be large comes last: SQLite reads a row from its front.
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("schedule", sa.JSON()),
        sa.Column("schedule_before", sa.JSON()),
        sa.Column("plan", sa.JSON()),
    )
    op.create_index("jobs_by_state", "jobs", ["state", "id"])
    op.create_index("jobs_by_name", "jobs", ["name"])
    op.create_index("ix_jobs_owner", "jobs", ["owner"])
    op.create_index("ix_jobs_finished_s", "jobs", ["finished_s"])
    op.create_table(
        "job_labels",
        _of_job(primary_key=True),
        sa.Column("key", sa.String(), primary_key=True),
        sa.Column("value", sa.String(), nullable=False),
    )
    op.create_index("labels_by_value", "job_labels", ["key", "value"])
    op.create_table(
        "transitions",
        sa.Column("id", sa.Integer(), primary_key=True),
        _of_job(),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("at_s", sa.Double(), nullable=False),
    )
    op.create_index("transitions_by_job", "transitions", ["job_id", "id"])


def _make_ledgers() -> None:
    op.create_table(
        "ledger_starts",
        _of_job(primary_key=True),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("header", sa.JSON(), nullable=False),
    )
    op.create_table(
        "rounds",
        _of_job(primary_key=True),
        sa.Column("attempt", sa.Integer(), primary_key=True),
        sa.Column("round", sa.Integer(), primary_key=True),
        sa.Column("item", sa.Text(), nullable=False),
        sa.Column("at_s", sa.Double(), nullable=False),
        sa.Column("is_abandoned", sa.Boolean(), nullable=False),
    )
    op.create_index("rounds_of_chain", "rounds", ["job_id", "is_abandoned", "round"])


def _make_operations() -> None:
    op.create_table(
        "commands",
        sa.Column("id", sa.Integer(), primary_key=True),
        _of_job(),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.Column("override_id", sa.String()),
        sa.Column("folded_round", sa.Integer()),
        sa.Column("at_s", sa.Double(), nullable=False),
    )
    op.create_index("commands_by_job", "commands", ["job_id", "id"])
    op.create_table(
        "overrides",
        sa.Column("id", sa.String(), primary_key=True),
        _of_job(),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("applied_round", sa.Integer()),
        sa.Column("refusal", sa.Text(), nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.Column("created_s", sa.Double(), nullable=False),
        sa.Column("updated_s", sa.Double(), nullable=False),
    )
    op.create_index("overrides_by_job", "overrides", ["job_id", "id"])
    op.create_table(
        "events",
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=True),
        _of_job(),
        sa.Column("type", sa.String(), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.Column("at_s", sa.Double(), nullable=False),
        sqlite_autoincrement=True,  # an id is never given twice, also where the newest event was deleted
    )
    op.create_index("events_by_job", "events", ["job_id", "id"])


def _make_access() -> None:
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("job_id", sa.String()),
        sa.Column("before", sa.JSON()),
        sa.Column("after", sa.JSON()),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("at_s", sa.Double(), nullable=False),
    )
    op.create_index("ix_audit_job_id", "audit", ["job_id"])
    op.create_table(
        "idempotency",
        sa.Column("owner", sa.String(), primary_key=True),
        sa.Column("key", sa.String(), primary_key=True),
        sa.Column("body_digest", sa.String(), nullable=False),
        _of_job(),
        sa.Column("at_s", sa.Double(), nullable=False),
    )
    op.create_table(
        "tokens",
        sa.Column("name", sa.String(), primary_key=True),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False, unique=True),
        sa.Column("created_s", sa.Double(), nullable=False),
        sa.Column("revoked_s", sa.Double()),
    )
    op.create_table(
        "packages",
        sa.Column("sha256", sa.String(), primary_key=True),
        sa.Column("size_bytes", sa.Integer(), nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.Column("created_s", sa.Double(), nullable=False),
        sa.Column("used_s", sa.Double(), nullable=False),
    )
