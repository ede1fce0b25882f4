"""A job enters a state: its row, the list of its transitions and its event change in one write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy.orm import Session

from hdet_service.events import record
from hdet_service.override_rows import end_pending
from hdet_service.states import TERMINAL, Reason, State, may_follow
from hdet_service.store.models import Audit, Job, Transition

ENTERED = "entered"
"""In a session's info: states that jobs have entered in its write."""


def enter(session: Session, job: Job, state: State, reason: Reason, message: str, now_s: float) -> None:
    """Put a job into a state, with all that follows from that.

    Raises:
        ValueError: the state can't follow the one that the job is in (a fault of ours).
    """
    before = State(job.state)
    if not may_follow(before, state):
        raise ValueError(f"job {job.id}: {state} can't follow {before}")
    job.state, job.reason, job.message = state.value, reason.value, message
    touch(job, now_s)
    if state is State.STARTING and job.started_s is None:
        job.started_s = now_s
    if state in TERMINAL:
        job.finished_s = now_s
        job.wanted = None
        job.not_before_s = None
        end_pending(session, job.id, f"the job ended as {state.value} before it could apply", now_s)
    if state is not State.RUNNING:
        job.replicas_present = 0  # the next report says how many there are
    if state not in (State.RUNNING, State.DEGRADED):
        job.steps_per_s = None
    session.add(
        Transition(job_id=job.id, state=state.value, reason=reason.value, message=message, at_s=now_s)
    )
    record(
        session,
        job.id,
        "state",
        {
            "from": before.value,
            "state": state.value,
            "reason": reason.value,
            "message": message,
            "submission": job.submission,
        },
        now_s,
    )
    session.info.setdefault(ENTERED, []).append(state)


def touch(job: Job, now_s: float) -> None:
    """The job itself has changed: its ETag too."""
    job.updated_s = now_s
    job.version += 1


def audit(
    session: Session,
    *,
    actor: str,
    action: str,
    job_id: str | None,
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any] | None,
    reason: str,
    now_s: float,
) -> None:
    """Who changed what, from what, to what, and why; it outlives the job."""
    session.add(
        Audit(
            actor=actor,
            action=action,
            job_id=job_id,
            before=None if before is None else dict(before),
            after=None if after is None else dict(after),
            reason=reason,
            at_s=now_s,
        )
    )
    if job_id is not None:
        record(
            session,
            job_id,
            "audit",
            {"actor": actor, "action": action, "before": before, "after": after, "reason": reason},
            now_s,
        )


def standing(job: Job) -> dict[str, Any]:
    """What an audit keeps of a job."""
    return {"state": job.state, "reason": job.reason, "submission": job.submission, "wanted": job.wanted}
