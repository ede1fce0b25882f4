"""Hearing: what drivers and workers tell, and the step that each of their words asks for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy.orm import Session

from hdet_service import told
from hdet_service.launches import submission_id
from hdet_service.metrics import REPLICA_FAILURES, SYNC_FAILURES, SyncFailure, add_counts, one
from hdet_service.reconcile import PAUSED_AT, PAUSES, Effect, Step, settle
from hdet_service.states import ACTIVE, Reason, State
from hdet_service.steps import Steps
from hdet_service.store.models import Job


class Hearing:
    """Of all jobs.

    Args:
        clock: Seconds since the epoch.
        steps: Takes the jobs on.
    """

    def __init__(self, clock: Callable[[], float], steps: Steps) -> None:
        self._clock = clock
        self._steps = steps
        self._pulse = steps.pulse
        self.finished_s: dict[str, float] = {}
        """When drivers have said their last word. Whoever sees that one is gone takes it out."""

    async def opened(self, request: Mapping[str, Any]) -> None:
        """A worker group has begun an attempt, and trains."""
        job_id, resumed_round = str(request["job"]), request.get("resumed_round")
        self._pulse.opened(job_id, self._clock())
        start = "the start" if resumed_round is None else f"round {resumed_round}"
        replicas = int(request["num_replicas"])
        text = f"Attempt {request['attempt']}: {replicas} replicas, from {start}"
        await self._steps.advance(job_id, lambda _, job: told.trains(job, text, replicas))

    async def reported(self, request: Mapping[str, Any]) -> None:
        """A round's report came: its job trains. Nothing is written where that is known."""
        job_id, attempt = str(request["job"]), int(request["attempt"])
        if self._pulse.reported(job_id, attempt, self._clock()):
            text = f"Attempt {attempt} reports"
            await self._steps.advance(job_id, lambda _, job: told.trains(job, text, job.replicas_present))
            self._pulse.settled(job_id)

    async def note(self, request: Mapping[str, Any]) -> bool:
        """A driver's or a worker's word.

        Returns:
            False for one that has been followed by another: it is not listened to.
        """
        job_id, kind = str(request["job"]), str(request["kind"])
        submission, data = int(request.get("submission", 0)), request.get("data") or {}
        is_current = False

        def choose(session: Session, job: Job) -> Step | None:
            nonlocal is_current
            is_current = job.submission == submission
            return self._told(session, job, kind, data) if is_current else None

        try:
            await self._steps.advance(job_id, choose)
        except Exception:
            self._pulse.unlearn_loss(job_id)  # it may not have been stored
            raise
        if is_current and kind == "finished":
            self.finished_s.setdefault(submission_id(job_id, submission), self._clock())
        return is_current

    def _told(self, session: Session, job: Job, kind: str, data: Mapping[str, Any]) -> Step | None:
        state = State(job.state)
        if state not in ACTIVE:
            return None
        if kind in ("imported", "started"):
            if state is State.STARTING:
                text = "Its entrypoint is imported" if kind == "imported" else "It waits for its workers"
                return Step(state=state, reason=Reason.WAITING_FOR_RESOURCES, message=text)
        elif kind in ("lost", "preempted", "resizing", "waiting"):
            return self._told_of_group(session, job, state, kind, data)
        elif kind == "paused" and job.wanted in PAUSES and state is State.STOPPING:
            return Step(
                state=state,
                reason=Reason.PAUSING,
                message=f"{PAUSED_AT} round {data.get('round')}",
                effect=Effect.STOP,
                keeps_wanted=True,
            )
        elif kind == "finished":
            return settle(
                self._steps.standing(session, job), told.last_word(data), self._clock(), self._steps.bounds
            )
        return None

    def _told_of_group(
        self, session: Session, job: Job, state: State, kind: str, data: Mapping[str, Any]
    ) -> Step | None:
        at_s = float(data.get("at_s", math.inf))
        is_preemption = bool(data.get("is_preemption"))
        if kind == "lost":
            if not self._pulse.is_new_loss(job.id, job.submission, at_s):
                return None
            add_counts(session, job.id, one(SYNC_FAILURES, SyncFailure.INTERRUPTED))
        if self._pulse.has_opened_since(job.id, at_s):
            if kind == "lost":  # old news: the group is back already
                job.failures += not is_preemption
                reason = Reason.PREEMPTED if is_preemption else Reason.REPLICA_LOST
                add_counts(session, job.id, one(REPLICA_FAILURES, reason))
            return None
        if kind == "preempted":
            return told.preempted(job, state, data)
        self._pulse.lost(job.id, job.attempt)
        if kind == "lost":
            return told.lost(job, state, str(data.get("message", "")), is_preemption=is_preemption)
        return told.resizes(job, state, data) if kind == "resizing" else told.waits(job, state, data)
