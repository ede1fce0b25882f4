"""Rows of jobs that `supervision` goes through at each look: few columns, whatever the number of jobs."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from hdet_service.reconcile import Wanted
from hdet_service.states import ACTIVE, Reason, State
from hdet_service.store.models import WITHOUT_SCHEDULE, ControllerRow, Job


@dataclass(frozen=True, slots=True)
class Seen:
    """An active job as it was before Ray was asked."""

    submission: int
    is_handed_over: bool
    """Ray has had its driver."""


def load(session: Session, job_id: str) -> Job | None:
    """A job without its schedule, which may be large; that is read when it is asked for."""
    return session.get(Job, job_id, options=WITHOUT_SCHEDULE)


def active(session: Session) -> dict[str, Seen]:
    """Jobs that have a driver, or should have one."""
    states = [state.value for state in ACTIVE]
    query = select(Job.id, Job.submission, Job.state, Job.reason).where(Job.state.in_(states))
    return {
        job_id: Seen(submission, (state, reason) != (State.STARTING, Reason.STARTING))
        for job_id, submission, state, reason in session.execute(query)
    }


def to_start(session: Session) -> list[tuple[str, int]]:
    """Jobs whose driver Ray may not have yet, with its number, in the order in which they got their slots."""
    query = select(Job.id, Job.submission).where(
        Job.state == State.STARTING.value, Job.reason == Reason.STARTING.value
    )
    rows = session.execute(query.order_by(Job.priority.desc(), Job.id))
    return [(job_id, submission) for job_id, submission in rows]


def is_draining(session: Session) -> bool:
    """Whether nothing is admitted now."""
    row = session.get(ControllerRow, 1)
    return row is not None and row.is_draining


def left_drained(session: Session) -> list[str]:
    """Jobs that paused for a drain which is over: one of them may still have been stopping at its end."""
    if is_draining(session):
        return []
    query = select(Job.id).where(Job.state == State.PAUSED.value, Job.wanted == Wanted.DRAINED.value)
    return list(session.scalars(query))


def expiries(session: Session) -> list[tuple[float, str]]:
    """When which jobs are to be deleted."""
    ttl = func.json_extract(Job.spec, "$.ttl_after_finished_s")
    query = select(Job.finished_s + ttl, Job.id).where(Job.finished_s.is_not(None), ttl.is_not(None))
    return [(at_s, job_id) for at_s, job_id in session.execute(query) if at_s is not None]
