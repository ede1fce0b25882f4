"""Supervision: admits jobs, starts and stops their drivers, and follows what becomes of them.

A tick compares the database with Ray's list and takes each job one step (`reconcile.next_step`): the step is
committed, then acted on. What drivers and workers tell in between goes through the same steps.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from hdet_service import job_rows, told
from hdet_service.acts import Acts, is_handed_over
from hdet_service.admission import admitted
from hdet_service.events import record
from hdet_service.job_rows import Seen
from hdet_service.launches import exit_meaning, submission_id
from hdet_service.logs import Logs, split_id
from hdet_service.metrics import REPLICA_FAILURES, SYNC_FAILURES, SyncFailure, add_counts, one
from hdet_service.metrics.catalogue import FAILURE_REASONS
from hdet_service.pulse import Pulse
from hdet_service.reconcile import (
    PAUSED_AT,
    PAUSES,
    Bounds,
    Effect,
    Outcome,
    Standing,
    Step,
    Wanted,
    next_step,
    outcome_of,
    settle,
)
from hdet_service.settings import Settings
from hdet_service.starter import DriverState, Starter, StarterError
from hdet_service.states import ACTIVE, TERMINAL, Reason, State
from hdet_service.store.database import Store
from hdet_service.store.models import Job, Transition
from hdet_service.submission import read_admission
from hdet_service.transitions import ENTERED, enter, touch
from hdet_service.trying import FailuresLogged

logger = logging.getLogger(__name__)

Choose = Callable[[Session, Job], Step | None]

_IDLE_LOOK_S = 10.0
"""Between two looks at Ray while nothing of ours should run there."""
_LAST_WORD_GRACE_S = 30.0
"""A driver that has said its last word is left this long to end."""


class Supervision:
    """The life of drivers.

    Args:
        store: The database.
        settings: The service's.
        starter: Ray.
        logs: Keeps drivers' output.
        expire: Deletes a job whose time after its end is over.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        starter: Starter,
        logs: Logs,
        expire: Callable[[str], Awaitable[None]],
    ) -> None:
        self._store = store
        self._settings = settings
        self._starter = starter
        self._logs = logs
        self._expire = expire
        self._bounds = Bounds(
            retry_delay_s=settings.retry_delay_s,
            retry_delay_max_s=settings.retry_delay_max_s,
            pause_timeout_s=settings.pause_timeout_s,
            silence_timeout_s=settings.silence_timeout_s,
        )
        self._pulse = Pulse(store.clock())
        self._turn = asyncio.Lock()
        self.acts = Acts(store, settings, starter, self.driver_told)
        self._loose: dict[str, float] = {}
        """Drivers on Ray's list that no job stands for (any more), by when that was seen first."""
        self._finished: set[str] = set()
        """Drivers that have said their last word."""
        self._losses: dict[str, tuple[int, float]] = {}
        """The newest loss that each job was told, by which driver and when: said twice, it counts once."""
        self._next_look_s = 0.0
        self._next_expiry_s = 0.0
        self._is_ray_silent = False
        store.on_commit(self._after_commit)

    # ---- the clockwork

    async def tick(self) -> None:
        """One look around: what ended, what is due, what has to start or stop."""
        async with self._turn:
            drivers = await self._look()
            for job_id in await self._store.read(job_rows.left_drained):
                await self._try_advance(job_id, _goes_on)
            await self._admit(drivers or {})
            if drivers is not None:
                for job_id, submission in await self._store.read(job_rows.to_start):
                    if submission_id(job_id, submission) not in drivers:
                        await self._try_advance(job_id, _starts)
                await self._sweep(drivers)
            await self._delete_expired()
        await self.acts.settle(self._settings.tick_s)

    async def _look(self) -> Mapping[str, DriverState] | None:
        """Ask Ray, and take every active job on from what it says; None if Ray doesn't answer."""
        seen = await self._store.read(job_rows.active)
        now = self._store.clock()
        is_idle = not seen and not self._loose
        if is_idle and now < self._next_look_s <= now + _IDLE_LOOK_S:
            return {}
        try:
            drivers = await asyncio.to_thread(self._starter.states)
        except StarterError as error:
            if not self._is_ray_silent:
                logger.warning("Ray does not answer: %s", error)
            self._is_ray_silent = True
            return None
        self._is_ray_silent, self._next_look_s = False, now + _IDLE_LOOK_S
        await asyncio.to_thread(self._logs.copy_all, drivers)
        choices = {job_id: self._choice(job_id, before, drivers) for job_id, before in seen.items()}
        for job_id in await self._store.read(lambda session: _due(session, choices)):
            job = await self._try_advance(job_id, choices[job_id])
            if job is not None and job.state == State.DEGRADED:
                self._pulse.silent(job_id)
        return drivers

    def _choice(self, job_id: str, before: Seen, drivers: Mapping[str, DriverState]) -> Choose:
        """What follows for a job from Ray's list, which was asked after ``before`` was read."""
        sid = submission_id(job_id, before.submission)
        driver = drivers.get(sid)

        def choose(session: Session, job: Job) -> Step | None:
            if job.submission != before.submission or self.acts.is_starting(sid):
                return None
            if driver is None and not before.is_handed_over and is_handed_over(job):
                return None  # it was handed over after Ray was asked
            ending = None
            if driver is not None and driver.status.has_ended:
                last_line = self._logs.last_line(job_id, before.submission)
                meaning = exit_meaning(job, driver.exit_code)
                ending = outcome_of(driver, meaning=meaning, last_line=last_line)
            standing = self._standing(session, job)
            return next_step(standing, driver, ending, self._store.clock(), self._bounds)

        return choose

    async def _admit(self, drivers: Mapping[str, DriverState]) -> None:
        """Give free slots away. A job whose earlier driver still ends waits: one driver a job."""
        live = {split_id(sid)[0] for sid, driver in drivers.items() if not driver.status.has_ended}

        def write(session: Session) -> None:
            now = self._store.clock()
            at = read_admission(session, self._settings)
            chosen = admitted(
                (job for job in at.queue if job.id not in live),
                num_running=at.num_running,
                max_running=at.max_running,
                now_s=now,
                max_delay_s=self._settings.retry_delay_max_s,
                is_draining=at.is_draining,
            )
            for job_id in chosen:
                job = session.get_one(Job, job_id)
                job.submission += 1
                job.not_before_s = None
                enter(session, job, State.STARTING, Reason.STARTING, f"Starting driver {job.submission}", now)

        at = await self._store.read(lambda session: read_admission(session, self._settings))
        if at.queue and not at.is_draining and at.num_running < at.max_running:
            await self._store.write(write)

    async def _sweep(self, drivers: Mapping[str, DriverState]) -> None:
        """Drivers that no job stands for: stop those that live, forget those that ended and are copied."""
        active = {
            submission_id(id, seen.submission)
            for id, seen in (await self._store.read(job_rows.active)).items()
        }
        now = self._store.clock()
        loose = {sid: self._loose.get(sid, now) for sid in drivers if sid not in active}
        done = []
        for sid, since_s in loose.items():
            driver = drivers[sid]
            if driver.status.has_ended:
                if self._logs.has_all(sid, driver.log_path):
                    done.append(sid)
            elif sid not in self._finished or now - since_s >= _LAST_WORD_GRACE_S:
                self.acts.stop(sid)
        self._loose = {sid: since_s for sid, since_s in loose.items() if sid not in done}
        self._finished -= set(done)
        if done:
            await asyncio.to_thread(self._starter.forget, done)

    async def _delete_expired(self) -> None:
        now = self._store.clock()
        if now < self._next_expiry_s:
            return
        ends = await self._store.read(job_rows.expiries)
        self._next_expiry_s = min((at_s for at_s, _ in ends if at_s > now), default=math.inf)
        for job_id in (job_id for at_s, job_id in ends if at_s <= now):
            await self._expire(job_id)

    def _after_commit(self, info: Mapping[Any, Any]) -> None:
        """`Store.on_commit`'s listener, in the writer's thread: one that has ended may expire."""
        if any(state in TERMINAL for state in info.get(ENTERED, ())):
            self._next_expiry_s = 0.0

    # ---- what is told

    async def opened(self, request: Mapping[str, Any]) -> None:
        """A worker group has begun an attempt, and trains."""
        job_id, resumed_round = str(request["job"]), request.get("resumed_round")
        self._pulse.opened(job_id, self._store.clock())
        start = "the start" if resumed_round is None else f"round {resumed_round}"
        replicas = int(request["num_replicas"])
        text = f"Attempt {request['attempt']}: {replicas} replicas, from {start}"
        await self._advance(job_id, lambda _, job: told.trains(job, text, replicas))

    async def reported(self, request: Mapping[str, Any]) -> None:
        """A round's report came: its job trains. Nothing is written where that is known."""
        job_id, attempt = str(request["job"]), int(request["attempt"])
        if self._pulse.reported(job_id, attempt, self._store.clock()):
            text = f"Attempt {attempt} reports"
            await self._advance(job_id, lambda _, job: told.trains(job, text, job.replicas_present))
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
            await self._advance(job_id, choose)
        except Exception:
            self._losses.pop(job_id, None)  # it may not have been stored
            raise
        if is_current and kind == "finished":
            sid = submission_id(job_id, submission)
            self._loose.setdefault(sid, self._store.clock())
            self._finished.add(sid)
        return is_current

    async def driver_told(self, job_id: str, submission: int, outcome: Outcome) -> bool:
        """How a driver ended, where no note says so; False if it isn't the job's newest one."""

        def choose(session: Session, job: Job) -> Step | None:
            if job.submission != submission or State(job.state) not in ACTIVE:
                return None
            return settle(self._standing(session, job), outcome, self._store.clock(), self._bounds)

        return await self._advance(job_id, choose) is not None

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
                self._standing(session, job), told.last_word(data), self._store.clock(), self._bounds
            )
        return None

    def _told_of_group(
        self, session: Session, job: Job, state: State, kind: str, data: Mapping[str, Any]
    ) -> Step | None:
        at_s = float(data.get("at_s", math.inf))
        is_preemption = bool(data.get("is_preemption"))
        if kind == "lost":
            if math.isfinite(at_s) and self._losses.get(job.id) == (job.submission, at_s):
                return None
            self._losses[job.id] = (job.submission, at_s)
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

    # ---- steps

    async def _advance(self, job_id: str, choose: Choose) -> Job | None:
        """Choose a job's step and commit it; None where there is no such job, or no step."""

        def write(session: Session) -> Job | None:
            job = job_rows.load(session, job_id)
            step = None if job is None else choose(session, job)
            if job is None or step is None:
                return None
            self._apply(session, job, step, self._store.clock())
            return job

        return await self._store.write(write)

    async def _try_advance(self, job_id: str, choose: Choose) -> Job | None:
        """The same; a job that can't be taken on keeps no other from it."""
        with FailuresLogged(logger, "no step taken: job=%s", job_id):
            return await self._advance(job_id, choose)
        return None

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
                self._pulse.forget(job.id)
                self._losses.pop(job.id, None)
        if step.effect is not None:
            self.acts.after_commit_of(session, step.effect, job)

    def _standing(self, session: Session, job: Job) -> Standing:
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
            last_report_s=self._pulse.last_report_s(job.id, job.last_report_s),
            usual_round_s=self._pulse.usual_round_s(job.id),
        )


def _starts(_: Session, job: Job) -> Step | None:
    """Just admitted, or committed by a controller that is gone: hand it to Ray."""
    return None if is_handed_over(job) or job.wanted is not None else Step(effect=Effect.START)


def _goes_on(session: Session, job: Job) -> Step | None:
    """Paused for a drain that is over."""
    if job_rows.is_draining(session) or (job.state, job.wanted) != (State.PAUSED, Wanted.DRAINED):
        return None
    return Step(state=State.QUEUED, reason=Reason.WAITING_FOR_SLOT, message="Resumed: the drain is over")


def _due(session: Session, choices: Mapping[str, Choose]) -> list[str]:
    """Jobs that have a step to take: at most looks there are none, and nothing is written then."""
    return [job_id for job_id, choose in choices.items() if _is_due(session, job_id, choose)]


def _is_due(session: Session, job_id: str, choose: Choose) -> bool:
    try:
        job = job_rows.load(session, job_id)
        return job is not None and choose(session, job) is not None
    except Exception:  # whatever it is, it is said where the step is taken
        return True
