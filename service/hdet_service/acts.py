"""Acts: drivers are started and stopped once the step that says so is on the disk.

A controller that dies between the two takes the act up again: the step stands in the database, and starting
or stopping the same driver twice is doing it once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

from sqlalchemy.orm import Session

from hdet_ray.exceptions import HDETError
from hdet_service.job_rows import load
from hdet_service.launches import launch_of, submission_id
from hdet_service.reconcile import Effect, Ending, Outcome
from hdet_service.settings import Settings
from hdet_service.starter import LaunchRefusedError, Starter, StarterError
from hdet_service.states import ACTIVE, Reason, State
from hdet_service.store.database import Store
from hdet_service.store.models import Job

logger = logging.getLogger(__name__)

MAX_START_ERRORS = 5
"""A driver that fails to start so often in a row counts as lost."""
_IN_SESSION = "effects"


def is_handed_over(job: Job) -> bool:
    """Whether its newest driver was heard of: before that, Ray may never have got it."""
    return not (State(job.state) is State.STARTING and Reason(job.reason) is Reason.STARTING)


class Acts:
    """What is done about drivers; each act runs once at a time, on the loop of `attach`.

    Args:
        store: Its commits release acts.
        settings: The service's.
        starter: Does them.
        report_end: Told of a driver that could not be started, with how that counts.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        starter: Starter,
        report_end: Callable[[str, int, Outcome], Awaitable[bool]],
    ) -> None:
        self._store = store
        self._settings = settings
        self._starter = starter
        self._report_end = report_end
        self._loop: asyncio.AbstractEventLoop | None = None
        self._running: dict[str, asyncio.Task[None]] = {}
        self._start_errors: dict[str, int] = {}
        store.on_commit(self._release)

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Act on this loop from now on."""
        self._loop = loop

    def after_commit_of(self, session: Session, effect: Effect, job: Job) -> None:
        """Do this once the session's write is committed."""
        session.info.setdefault(_IN_SESSION, []).append((effect, job.id, job.submission))

    def stop(self, sid: str) -> None:
        """Stop a driver that no job stands for."""
        self._begin(f"stop {sid}", self._stop(sid))

    def is_starting(self, sid: str) -> bool:
        """Whether a driver is being handed to Ray right now."""
        return f"start {sid}" in self._running

    async def settle(self, timeout_s: float) -> None:
        """Wait for what was released, up to a bound; what takes longer goes on by itself."""
        await asyncio.sleep(0)  # commits hand over by the loop: let that happen first
        if self._running:
            await asyncio.wait(self._running.values(), timeout=timeout_s)

    async def close(self) -> None:
        """Begin nothing more, and give up on what is under way: the next controller takes it up."""
        self._loop = None
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    def _release(self, info: Mapping[Any, Any]) -> None:
        """`Store.on_commit`'s listener, in the writer's thread."""
        loop = self._loop
        for effect, job_id, submission in info.get(_IN_SESSION, ()):
            if loop is not None and not loop.is_closed():
                loop.call_soon_threadsafe(self._act, effect, job_id, submission)

    def _act(self, effect: Effect, job_id: str, submission: int) -> None:
        sid = submission_id(job_id, submission)
        if effect is Effect.START:
            self._begin(f"start {sid}", self._start(job_id, submission))
        else:
            self.stop(sid)

    def _begin(self, name: str, act: Coroutine[Any, Any, None]) -> None:
        if name in self._running:
            act.close()
            return
        task = self._running[name] = asyncio.get_running_loop().create_task(act)

        def done(finished: asyncio.Task[None]) -> None:
            self._running.pop(name, None)
            if not finished.cancelled() and finished.exception() is not None:
                logger.error("act failed: %s", name, exc_info=finished.exception())

        task.add_done_callback(done)

    async def _start(self, job_id: str, submission: int) -> None:
        job = await self._store.read(lambda session: load(session, job_id))
        if job is None or job.submission != submission or is_handed_over(job):
            return  # it was canceled, or its driver has been heard of
        sid = submission_id(job_id, submission)
        try:
            await asyncio.to_thread(self._starter.start, launch_of(job, self._settings))
        except Exception as error:  # whatever it is, it must not come again for ever
            errors = self._start_errors[sid] = self._start_errors.get(sid, 0) + 1
            cause = str(error) if isinstance(error, HDETError) else f"{type(error).__name__}: {error}"
            logger.warning("driver not started: submission=%s try=%d cause=%s", sid, errors, cause)
            if isinstance(error, LaunchRefusedError):
                outcome = Outcome(ending=Ending.FAILED, reason=Reason.ENTRYPOINT_ERROR, message=cause)
            elif errors >= MAX_START_ERRORS:
                outcome = Outcome(ending=Ending.LOST, reason=Reason.DRIVER_LOST, message=cause)
            else:
                return
            del self._start_errors[sid]
            await self._report_end(job_id, submission, outcome)
        else:
            self._start_errors.pop(sid, None)
            logger.info("driver started: submission=%s", sid)
            job = await self._store.read(lambda session: load(session, job_id))
            if job is None or job.submission != submission or State(job.state) not in ACTIVE:
                self.stop(sid)  # it was canceled while Ray was taking it

    async def _stop(self, sid: str) -> None:
        try:
            await asyncio.to_thread(self._starter.stop, sid)
        except StarterError as error:
            logger.warning("driver not stopped: submission=%s cause=%s", sid, error)
