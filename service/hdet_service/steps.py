"""Steps: one job's next step is chosen, committed, and then acted on, whoever asks for it."""

from __future__ import annotations

import logging
from collections.abc import Callable

from sqlalchemy import select
from sqlalchemy.orm import Session

from hdet_service import job_rows
from hdet_service.acts import Acts
from hdet_service.events import record
from hdet_service.metrics import REPLICA_FAILURES, add_counts, one
from hdet_service.metrics.catalogue import FAILURE_REASONS
from hdet_service.pulse import Pulse
from hdet_service.reconcile import Bounds, Outcome, Standing, Step, Wanted, settle
from hdet_service.settings import Settings
from hdet_service.starter import Starter
from hdet_service.states import ACTIVE, TERMINAL, Reason, State
from hdet_service.store.database import Store
from hdet_service.store.models import Job, Transition
from hdet_service.transitions import enter, touch
from hdet_service.trying import FailuresLogged

logger = logging.getLogger(__name__)

Choose = Callable[[Session, Job], Step | None]


class Steps:
    """The steps of all jobs.

    Args:
        store: The database.
        settings: The service's.
        starter: Ray.
    """

    def __init__(self, store: Store, settings: Settings, starter: Starter) -> None:
        self._store = store
        self.bounds = Bounds(
            retry_delay_s=settings.retry_delay_s,
            retry_delay_max_s=settings.retry_delay_max_s,
            pause_timeout_s=settings.pause_timeout_s,
            silence_timeout_s=settings.silence_timeout_s,
        )
        self.pulse = Pulse(store.clock())
        self.acts = Acts(store, settings, starter, self.driver_ended)

    async def advance(self, job_id: str, choose: Choose) -> Job | None:
        """Choose a job's step and commit it; None where there is no such job, or no step."""

        def write(session: Session) -> Job | None:
            job = job_rows.load(session, job_id)
            step = None if job is None else choose(session, job)
            if job is None or step is None:
                return None
            self._apply(session, job, step, self._store.clock())
            return job

        return await self._store.write(write)

    async def try_advance(self, job_id: str, choose: Choose) -> Job | None:
        """The same; a job that can't be taken on keeps no other from it."""
        with FailuresLogged(logger, "no step taken: job=%s", job_id):
            return await self.advance(job_id, choose)
        return None

    async def driver_ended(self, job_id: str, submission: int, outcome: Outcome) -> bool:
        """How a driver ended, where no note says so; False if it isn't the job's newest one."""

        def choose(session: Session, job: Job) -> Step | None:
            if job.submission != submission or State(job.state) not in ACTIVE:
                return None
            return settle(self.standing(session, job), outcome, self._store.clock(), self.bounds)

        return await self.advance(job_id, choose) is not None

    def standing(self, session: Session, job: Job) -> Standing:
        """What `reconcile` has to know of a job."""
        newest = select(Transition.at_s).where(Transition.job_id == job.id).order_by(Transition.id.desc())
        entered_s = session.scalar(newest.limit(1))
        return Standing(
            state=State(job.state),
            reason=Reason(job.reason),
            message=job.message,
            wanted=None if job.wanted is None else Wanted(job.wanted),
            entered_s=job.updated_s if entered_s is None else entered_s,
            max_failures=int(job.spec["max_failures"]),
            failures=job.failures,
            step=job.step,
            total_steps=job.total_steps,
            last_report_s=self.pulse.last_report_s(job.id, job.last_report_s),
            usual_round_s=self.pulse.usual_round_s(job.id),
        )

    def _apply(self, session: Session, job: Job, step: Step, now_s: float) -> None:
        """Write a step down. Its effect waits in the session for the commit."""
        if step.only_message:
            job.message = step.message
            touch(job, now_s)
            return
        if step.failures is not None:
            job.failures = step.failures
        if step.state is not None and step.reason is not None:
            if step.reason in FAILURE_REASONS and (step.failures is not None or step.state is State.FAILED):
                add_counts(session, job.id, one(REPLICA_FAILURES, step.reason))
            if step.is_retry:
                data = {"failures": job.failures, "reason": step.reason.value, "message": step.message}
                record(session, job.id, "retry", data, now_s)
            enter(session, job, step.state, step.reason, step.message, now_s)
            if step.replicas is not None:
                job.replicas_present = step.replicas
            job.not_before_s = step.not_before_s
            if not step.keeps_wanted:
                job.wanted = None
            if step.state in TERMINAL:
                self.pulse.forget(job.id)
        if step.effect is not None:
            self.acts.after_commit_of(session, step.effect, job)
