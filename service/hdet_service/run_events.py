"""What a run's exchange leaves among the events, for people and streams."""

from __future__ import annotations

import math
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from hdet_ray.core.health import Verdict
from hdet_ray.core.plan import Plan
from hdet_ray.core.report import RoundReport
from hdet_ray.train.protocol import NoteRequest, OpenRequest
from hdet_service.events import record
from hdet_service.metrics import Restart
from hdet_service.store.models import Event, Job


def record_attempt(session: Session, job: Job, request: OpenRequest, abandoned: int, now_s: float) -> None:
    """An attempt of the run has begun."""
    data = {
        "attempt": request.attempt,
        "submission": request.submission,
        "round": request.state["state"].get("round", 0),
        "replicas": request.num_replicas,
        "abandoned_rounds": abandoned,
        "host": request.host,
        "pid": request.pid,
    }
    record(session, job.id, "attempt", data, now_s)


def record_round(
    session: Session,
    job_id: str,
    attempt: int,
    *,
    report: RoundReport,
    finished: Plan,
    verdict: Verdict,
    plan: Plan,
    at_s: float,
) -> None:
    """A round has ended, with all that people should hear of it.

    Args:
        session: The write that stores it.
        job_id: Whose.
        attempt: Which attempt trained it.
        report: What it reported.
        finished: The plan that it followed.
        verdict: What its boundary did with each replica.
        plan: The next round's.
        at_s: When its report came.
    """
    losses = [r.loss for r in report.replicas if math.isfinite(r.loss)]
    data: dict[str, Any] = {
        "attempt": attempt,
        "round": report.round,
        "step": finished.step + report.steps,
        "phase": finished.phase,
        "replicas": finished.num_replicas,
        "loss": math.fsum(losses) / len(losses) if losses else None,
    }
    record(session, job_id, "round", data, at_s)
    where = {"attempt": attempt, "round": report.round}
    if verdict.rolls_back:
        told = {**where, "culprits": list(verdict.culprits)}
        record(session, job_id, "rollback", told, at_s)
    elif not finished.is_search:
        for replica in verdict.unhealthy:
            told = {**where, "replica": replica, "reason": verdict.reasons[replica]}
            record(session, job_id, "quarantine", told, at_s)
    if plan.num_replicas != finished.num_replicas:
        told = {
            **where,
            "step": plan.step,
            "from": finished.num_replicas,
            "to": plan.num_replicas,
        }
        record(session, job_id, "resize", told, at_s)
    for note in plan.notes:
        record(session, job_id, "note", {**where, "text": note}, at_s)


def record_restart(
    session: Session, job_id: str, attempt: int, *, restart: Restart, finished: Plan, at_s: float
) -> None:
    """A run trains again, as its attempt's first report shows.

    Args:
        session: The write that stores the report.
        job_id: Whose.
        attempt: The new one.
        restart: How long there was no report, and how many replicas there were.
        finished: The plan that the first round followed.
        at_s: When its report came.
    """
    where = {"attempt": attempt, "round": finished.round, "step": finished.step}
    if restart.without_report_s is not None:
        told = {**where, "seconds": round(restart.without_report_s, 3), "replicas": restart.replicas}
        record(session, job_id, "recovery", told, at_s)
    if restart.replicas_before not in (None, restart.replicas):
        told = {**where, "from": restart.replicas_before, "to": restart.replicas}
        record(session, job_id, "resize", told, at_s)


def record_checkpoint(session: Session, job: Job, note: NoteRequest, now_s: float) -> None:
    """A checkpoint is stored; said twice, it is recorded once."""
    data = {"attempt": note.attempt, "submission": note.submission, **note.data}
    newest = session.scalar(
        select(Event)
        .where(Event.job_id == job.id, Event.type == "checkpoint")
        .order_by(Event.id.desc())
        .limit(1)
    )
    if newest is not None and newest.data == data:
        return
    job.last_checkpoint_s = now_s
    record(session, job.id, "checkpoint", data, now_s)
