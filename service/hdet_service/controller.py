"""The controller: one store, the jobs and runs in it, and the clockwork that moves them. No HTTP, no Ray.

`actor.py` puts it into a Ray actor behind HTTP; tests use it in theirs with a starter that records.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from hdet_ray.train.protocol import Answer, answer_to_json
from hdet_service.auth import Principal, Role
from hdet_service.events import EventBus
from hdet_service.hearing import Hearing
from hdet_service.jobs import Jobs
from hdet_service.logs import Logs
from hdet_service.metrics import Metrics
from hdet_service.problems import Conflict, NotFound
from hdet_service.runs import Runs
from hdet_service.settings import Settings
from hdet_service.starter import Starter
from hdet_service.steps import Steps
from hdet_service.store.database import Store
from hdet_service.store.housekeeping import Housekeeping
from hdet_service.store.models import ControllerRow, Job
from hdet_service.supervision import Supervision
from hdet_service.trying import FailuresLogged

logger = logging.getLogger(__name__)

_CALLS = frozenset({"open", "adopt", "exchange", "note"})
SYSTEM = Principal("controller", Role.OPERATOR)
"""Who does what nobody asked for."""


class Controller:
    """Everything that one service is.

    Args:
        settings: The service's.
        store: Open; the controller closes it.
        starter: Starts drivers.
    """

    def __init__(self, settings: Settings, store: Store, starter: Starter) -> None:
        self.settings = settings
        self.store = store
        self.clock = store.clock
        self.starter = starter
        self.epoch = store.write_sync(self._begin_epoch)
        self.events = EventBus()
        store.on_commit(self.events.after_commit)
        self.logs = Logs(settings.logs_path, settings.max_log_bytes)
        self.metrics = Metrics(store, finished_series_grace_s=settings.finished_series_grace_s)
        self.jobs = Jobs(store, settings, self.logs, self._wake, self.metrics.observe_submission)
        self.runs = Runs(store, epoch=self.epoch, metrics=self.metrics)
        self.steps = Steps(store, settings, starter)
        self.hearing = Hearing(store.clock, self.steps)
        self.supervision = Supervision(
            store, settings, starter, self.logs, self.steps, self.hearing, self._expire
        )
        self._has_work = asyncio.Event()
        self._housekeeping = Housekeeping(
            store,
            keep_rounds=settings.ledger_full_rounds,
            packages=settings.packages_path,
            packages_kept_s=settings.package_keep_days * 86_400.0,
        )
        self._clockwork: tuple[asyncio.Task[None], ...] = ()

    async def start(self) -> None:
        """Take up what the last controller left, and go on by the clock until `stop`."""
        loop = asyncio.get_running_loop()
        self.events.attach(loop)
        self.steps.acts.attach(loop)
        await self.store.read(self._prune_logs)
        await self._try_tick()
        self._clockwork = tuple(asyncio.create_task(work) for work in (self._run(), self._housekeeping.run()))

    async def stop(self) -> None:
        """End the clockwork and the streams, and close the store. Drivers go on."""
        for task in self._clockwork:
            task.cancel()
        await asyncio.gather(*self._clockwork, return_exceptions=True)
        await self.steps.acts.close()
        self.events.close()
        await asyncio.to_thread(self.store.close)

    async def tick(self) -> None:
        """One look around; see `Supervision.tick`."""
        await self.supervision.tick()

    async def call(self, kind: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """What training says, and the answer: see `hdet_ray.train.protocol`."""
        if kind not in _CALLS:
            return answer_to_json(
                Answer(status="protocol", epoch=self.epoch, message=f"call {kind!r} is not known here")
            )
        began_s = time.perf_counter()
        answer: dict[str, Any] = await getattr(self.runs, kind)(request)
        if kind == "exchange":
            self.metrics.observe_exchange(time.perf_counter() - began_s)
        if answer["status"] != "ok":
            return answer
        if kind in ("open", "adopt"):
            await self.hearing.opened(request)
        elif kind == "note":
            if not await self.hearing.note(request):
                answer["status"] = "fenced"
            self._wake()  # a driver may start in place of one that has ended
        elif request.get("decided") is None:  # a late report says nothing of now
            await self.hearing.reported(request)
        return answer

    def _wake(self) -> None:
        self._has_work.set()

    async def _run(self) -> None:
        while True:
            await self._try_tick()
            self._has_work.clear()
            # Not wait_for: before Python 3.12 it loses a cancellation that comes with what it awaits.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.settings.tick_s):
                    await self._has_work.wait()

    async def _try_tick(self) -> None:
        """A tick; where it fails, the next one tries again."""
        with FailuresLogged(logger, "tick failed"):
            await self.tick()

    async def _expire(self, job_id: str) -> None:
        try:
            await self.jobs.delete(job_id, SYSTEM, "its time after its end is over")
        except (NotFound, Conflict):
            logger.info("not deleted: job=%s", job_id)

    def _begin_epoch(self, session: Session) -> int:
        now = self.store.clock()
        row = session.get(ControllerRow, 1)
        if row is None:
            row = ControllerRow(id=1, epoch=0, pid=0, started_s=now, is_draining=False)
            session.add(row)
        row.epoch += 1
        row.pid, row.started_s = os.getpid(), now
        return row.epoch

    def _prune_logs(self, session: Session) -> None:
        self.logs.prune(set(session.scalars(select(Job.id))))


def create_controller(
    settings: Settings, starter: Starter, clock: Callable[[], float] = time.time
) -> Controller:
    """Open the store and build a controller over it; `Controller.start` sets it going.

    Raises:
        StoreError: the database is another controller's, of a newer version, damaged, or can't be written.
    """
    settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    store = Store.open(settings.database_path, clock=clock)
    return Controller(settings, store, starter)
