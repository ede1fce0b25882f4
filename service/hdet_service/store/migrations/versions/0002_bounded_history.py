"""Bounds for what grows, counters that outlive a restart, and indexes that pages are read from in order."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Rounds that are there are full ones; the indexes gain what pages are ordered by."""
    op.add_column("rounds", sa.Column("is_thinned", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.drop_index("rounds_of_chain", "rounds")
    op.create_index("rounds_of_chain", "rounds", ["job_id", "is_abandoned", "round", "is_thinned"])
    op.create_table(
        "counters",
        sa.Column("job_id", sa.String(), sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("name", sa.String(), primary_key=True),
        sa.Column("value", sa.Double(), nullable=False),
    )
    op.create_index("idempotency_by_time", "idempotency", ["at_s"])
    op.create_index("idempotency_by_job", "idempotency", ["job_id"])
    # A page goes by id, newest first: with the id in the index it is read in order, nothing is sorted.
    op.drop_index("ix_jobs_owner", "jobs")
    op.create_index("jobs_by_owner", "jobs", ["owner", "id"])
    op.drop_index("jobs_by_name", "jobs")
    op.create_index("jobs_by_name", "jobs", ["name", "id"])
    op.drop_index("labels_by_value", "job_labels")
    op.create_index("labels_by_value", "job_labels", ["key", "value", "job_id"])
