"""Overrides as the API shows them: rows that follow the records of the schedule's confirmed state.

A record is what `core` made of an override when a plan was decided. It reaches the row when a report says
that this plan was followed, so an override is never shown as applied before it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from hdet_ray.core.codec import to_json
from hdet_ray.core.overrides import OverrideRecord
from hdet_ray.core.state import ScheduleState
from hdet_service.events import record
from hdet_service.job_view import rfc3339
from hdet_service.store.models import Command, OverrideRow

_OPEN = ("pending", "applied")


def confirm(
    session: Session,
    job_id: str,
    confirmed: ScheduleState,
    before: ScheduleState | None,
    now_s: float,
) -> None:
    """Bring rows up to what a report has confirmed.

    Args:
        session: The write that stores the report.
        job_id: Whose.
        confirmed: The state of the plan that the report followed.
        before: The state confirmed before it; None looks at every record.
        now_s: The time.
    """
    known = frozenset() if before is None else frozenset(map(id, before.overrides))
    # A record that did not change is the same object, as long as the state before is at hand.
    for then in confirmed.overrides:
        if id(then) in known:
            continue
        row = session.get(OverrideRow, then.override.id) or _restored(session, job_id, then, now_s)
        if (row.state, row.applied_round) != (then.status, then.applied_round):
            _follow(session, row, then, now_s)


def rewind(session: Session, job_id: str, state: ScheduleState, now_s: float) -> None:
    """Bring rows back to what the state of an earlier round knows; what it doesn't know waits again."""
    records = {each.override.id: each for each in state.overrides}
    session.execute(
        update(Command)
        .where(Command.job_id == job_id, Command.folded_round >= state.round)
        .values(folded_round=None)
    )
    queued = set(
        session.scalars(
            select(Command.override_id).where(
                Command.job_id == job_id,
                Command.override_id.is_not(None),
                Command.body["kind"].as_string() == "override",
            )
        )
    )
    for row in session.scalars(select(OverrideRow).where(OverrideRow.job_id == job_id)):
        then = records.get(row.id)
        if then is None and row.id in queued:
            # Its command may stand in a round that this state did not come from.
            session.execute(
                update(Command)
                .where(Command.job_id == job_id, Command.override_id == row.id)
                .values(folded_round=None)
            )
            _wait_again(session, row, now_s)
        elif then is not None and then.status == "applied" and (then.applied_round or 0) >= state.round:
            _wait_again(session, row, now_s)  # planned, but no report has confirmed it
        elif then is not None and (row.state, row.applied_round) != (then.status, then.applied_round):
            _follow(session, row, then, now_s)


def end_pending(session: Session, job_id: str, why: str, now_s: float) -> None:
    """Refuse what can't apply any more because the job has ended. Call it in the write that ends it."""
    rows = session.scalars(
        select(OverrideRow).where(OverrideRow.job_id == job_id, OverrideRow.state == "pending")
    )
    for row in rows:
        row.state, row.refusal, row.updated_s = "refused", why, now_s
        _tell(session, row, now_s)


def as_json(row: OverrideRow) -> dict[str, Any]:
    """An override as the API shows it."""
    body: Mapping[str, Any] = row.body
    return {
        "id": row.id,
        "hparam": body["hparam"],
        "op": body["op"],
        "value": body["value"],
        "group": body.get("group"),
        "apply_at_round": body.get("apply_at_round"),
        "expires_after_rounds": body.get("expires_after_rounds"),
        "reason": body.get("reason", ""),
        "state": row.state,
        "applied_round": row.applied_round,
        "refusal": row.refusal,
        "created_by": row.created_by,
        "created_at": rfc3339(row.created_s),
        "updated_at": rfc3339(row.updated_s),
    }


def in_force(rows: Iterable[OverrideRow]) -> list[dict[str, Any]]:
    """Overrides that are pending or applied, oldest first."""
    return [as_json(row) for row in rows if row.state in _OPEN]


def _restored(session: Session, job_id: str, then: OverrideRecord, now_s: float) -> OverrideRow:
    """A row for an override that the run brings along and a restored backup has never seen."""
    body = to_json(then.override)
    row = OverrideRow(
        id=body.pop("id"),
        job_id=job_id,
        body=body,
        state="pending",
        applied_round=None,
        refusal="",
        created_by="",
        created_s=now_s,
        updated_s=now_s,
    )
    session.add(row)
    return row


def _wait_again(session: Session, row: OverrideRow, now_s: float) -> None:
    if row.state != "pending":
        row.state, row.applied_round, row.refusal, row.updated_s = "pending", None, "", now_s
        _tell(session, row, now_s)


def _follow(session: Session, row: OverrideRow, then: OverrideRecord, now_s: float) -> None:
    row.state, row.applied_round = then.status, then.applied_round
    row.refusal, row.updated_s = then.reason, now_s
    _tell(session, row, now_s)


def _tell(session: Session, row: OverrideRow, now_s: float) -> None:
    """Its state is an event, by which it is counted too."""
    data = {"id": row.id, "state": row.state, "applied_round": row.applied_round, "refusal": row.refusal}
    record(session, row.job_id, "override", data, now_s)
