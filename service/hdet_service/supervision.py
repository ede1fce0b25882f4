"""Supervision: looks around by the clock, admits jobs, and starts and stops their drivers.

A tick compares the database with Ray's list and takes each job one step (`reconcile.next_step`). What drivers
and workers tell in between goes through the same `Steps`.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from sqlalchemy.orm import Session

from hdet_service import job_rows
from hdet_service.acts import is_handed_over
from hdet_service.admission import admitted
from hdet_service.hearing import Hearing
from hdet_service.job_rows import Seen
from hdet_service.launches import exit_meaning, submission_id
from hdet_service.logs import Logs, split_id
from hdet_service.reconcile import Effect, Step, Wanted, next_step, outcome_of
from hdet_service.settings import Settings
from hdet_service.starter import DriverState, Starter, StarterError
from hdet_service.states import TERMINAL, Reason, State
from hdet_service.steps import Choose, Steps
from hdet_service.store.database import Store
from hdet_service.store.models import Job
from hdet_service.submission import read_admission
from hdet_service.transitions import ENTERED, enter

logger = logging.getLogger(__name__)

_IDLE_LOOK_S = 10.0
"""Between two looks at Ray while nothing of ours should run there."""
_LAST_WORD_GRACE_S = 30.0
"""A driver that has said its last word is left this long to end."""


class Supervision:
    """The clockwork.

    Args:
        store: The database.
        settings: The service's.
        starter: Ray.
        logs: Keeps drivers' output.
        steps: Takes jobs on.
        hearing: Knows which drivers have said their last word.
        expire: Deletes a job whose time after its end is over.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        starter: Starter,
        logs: Logs,
        steps: Steps,
        hearing: Hearing,
        expire: Callable[[str], Awaitable[None]],
    ) -> None:
        self._store = store
        self._settings = settings
        self._starter = starter
        self._logs = logs
        self._steps = steps
        self._hearing = hearing
        self._expire = expire
        self._turn = asyncio.Lock()
        self._loose: dict[str, float] = {}
        """Drivers on Ray's list that no job stands for (any more), by when that was seen first."""
        self._looked_s = -math.inf
        self._next_expiry_s = 0.0
        self._is_ray_silent = False
        store.on_commit(self._after_commit)

    async def tick(self) -> None:
        """One look around: what ended, what is due, what has to start or stop."""
        async with self._turn:
            drivers = await self._look()
            for job_id in await self._store.read(job_rows.left_drained):
                await self._steps.try_advance(job_id, _goes_on)
            await self._admit(drivers or {})
            if drivers is not None:
                for job_id, submission in await self._store.read(job_rows.to_start):
                    if submission_id(job_id, submission) not in drivers:
                        await self._steps.try_advance(job_id, _starts)
                await self._sweep(drivers)
            await self._delete_expired()
        await self._steps.acts.settle(self._settings.tick_s)

    async def _look(self) -> Mapping[str, DriverState] | None:
        """Ask Ray, and take every active job on from what it says; None if Ray doesn't answer."""
        seen = await self._store.read(job_rows.active)
        now = self._store.clock()
        is_idle = not (seen or self._loose or self._hearing.finished_s)
        if is_idle and self._looked_s <= now < self._looked_s + _IDLE_LOOK_S:
            return {}
        try:
            drivers = await asyncio.to_thread(self._starter.states)
        except StarterError as error:
            if not self._is_ray_silent:
                logger.warning("Ray does not answer: %s", error)
            self._is_ray_silent = True
            return None
        self._is_ray_silent, self._looked_s = False, now
        await asyncio.to_thread(self._logs.copy_all, drivers)
        choices = {job_id: self._choice(job_id, before, drivers) for job_id, before in seen.items()}
        for job_id in await self._store.read(lambda session: _due(session, choices)):
            job = await self._steps.try_advance(job_id, choices[job_id])
            if job is not None and job.state == State.DEGRADED:
                self._steps.pulse.silent(job_id)
        return drivers

    def _choice(self, job_id: str, before: Seen, drivers: Mapping[str, DriverState]) -> Choose:
        """What follows for a job from Ray's list, which was asked after ``before`` was read."""
        sid = submission_id(job_id, before.submission)
        driver = drivers.get(sid)

        def choose(session: Session, job: Job) -> Step | None:
            if job.submission != before.submission or self._steps.acts.is_starting(sid):
                return None
            if driver is None and not before.is_handed_over and is_handed_over(job):
                return None  # it was handed over after Ray was asked
            ending = None
            if driver is not None and driver.status.has_ended:
                last_line = self._logs.last_line(job_id, before.submission)
                meaning = exit_meaning(job, driver.exit_code)
                ending = outcome_of(driver, meaning=meaning, last_line=last_line)
            standing = self._steps.standing(session, job)
            return next_step(standing, driver, ending, self._store.clock(), self._steps.bounds)

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
        finished_s = self._hearing.finished_s
        first_seen_s = {**dict.fromkeys(drivers, now), **finished_s, **self._loose}
        loose = {sid: first_seen_s[sid] for sid in drivers if sid not in active}
        done = []
        for sid, since_s in loose.items():
            driver = drivers[sid]
            if driver.status.has_ended:
                if self._logs.has_all(sid, driver.log_path):
                    done.append(sid)
            elif sid not in finished_s or now - since_s >= _LAST_WORD_GRACE_S:
                self._steps.acts.stop(sid)
        self._loose = {sid: since_s for sid, since_s in loose.items() if sid not in done}
        for sid, at_s in list(finished_s.items()):
            if sid in done or (sid not in drivers and at_s < self._looked_s):
                del finished_s[sid]
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
