"""Run by Alembic: migrates the connection that `hdet_service.store.schema` hands over."""

from __future__ import annotations

from alembic import context

from hdet_service.store.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    # SQLite can't alter most of a table: Alembic makes it anew and copies the rows.
    render_as_batch=True,
    transactional_ddl=True,
)

with context.begin_transaction():
    context.run_migrations()
