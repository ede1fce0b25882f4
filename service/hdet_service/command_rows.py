"""The queue of operators' commands of one run, in the database."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Table, bindparam, delete, select
from sqlalchemy.orm import Session

from hdet_ray.core.codec import from_json, to_json
from hdet_ray.train.protocol import Command
from hdet_service.exchange import Queued
from hdet_service.store.models import Command as CommandRow

_COMMANDS: Table = CommandRow.__table__  # type: ignore[assignment]
_READ_QUEUE = (
    select(_COMMANDS.c.id, _COMMANDS.c.body, _COMMANDS.c.folded_round)
    .where(_COMMANDS.c.job_id == bindparam("job_id"))
    .where(_COMMANDS.c.folded_round.is_(None) | (_COMMANDS.c.folded_round >= bindparam("since_round")))
    .order_by(_COMMANDS.c.id)
)
"""Run at every exchange, so built once."""


def add(
    session: Session, job_id: str, command: Command, now_s: float, *, override_id: str | None = None
) -> None:
    """Queue a command."""
    session.add(
        CommandRow(
            job_id=job_id, body=encode(command), override_id=override_id, folded_round=None, at_s=now_s
        )
    )


def of_rounds(session: Session, job_id: str, since_round: int) -> list[Queued]:
    """Commands that wait, and those that reports from a round on carry, in order."""
    rows = session.connection().execute(_READ_QUEUE, {"job_id": job_id, "since_round": since_round})
    return [Queued(id=id, command=from_json(Command, body), folded_round=round) for id, body, round in rows]


def waiting(session: Session, job_id: str) -> tuple[Command, ...]:
    """Commands that no report carries yet, in order."""
    rows = session.scalars(
        select(CommandRow.body)
        .where(CommandRow.job_id == job_id, CommandRow.folded_round.is_(None))
        .order_by(CommandRow.id)
    )
    return tuple(from_json(Command, body) for body in rows)


def waits(session: Session, job_id: str, command: Command) -> bool:
    """The very same command waits already."""
    return command in waiting(session, job_id)


def drop_waiting(session: Session, override_id: str) -> bool:
    """Take an override's own command out of the queue; False where a report carries it already."""
    row = session.scalars(
        select(CommandRow)
        .where(CommandRow.override_id == override_id, CommandRow.folded_round.is_(None))
        .order_by(CommandRow.id)
    ).first()
    if row is None or row.body["kind"] != "override":
        return False
    # A removal that waits for it has nothing left to remove.
    session.execute(delete(CommandRow).where(CommandRow.override_id == override_id))
    return True


def encode(command: Command) -> dict[str, Any]:
    """A command as its row holds it."""
    return {"kind": type(command).__name__.lower(), **to_json(command)}
