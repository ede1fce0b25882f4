"""The real service over real HTTP in this process: a starter that records, and runs played round by round."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import uvicorn

from hdet_ray.config import Auto, Controller
from hdet_ray.core.codec import digest, to_json
from hdet_ray.core.decide import decide, start
from hdet_ray.core.plan import RATE, Plan
from hdet_ray.core.report import ReplicaReport, RoundReport
from hdet_ray.core.state import state_to_json
from hdet_ray.train.protocol import (
    ExchangeRequest,
    NoteRequest,
    OpenRequest,
    answer_from_json,
    request_to_json,
)
from hdet_service.app import create_app
from hdet_service.controller import create_controller
from hdet_service.settings import Settings
from hdet_service.starter import RecordingStarter
from tests.service.recorded_runs import bowl, config_of
from tests.unit.runs import make_replica

T = TypeVar("T")


class Served:
    """A running service.

    Args:
        home: Its folder; the first operator's token is in it.
    """

    def __init__(self, home: Path, **settings: Any) -> None:
        self.home = home
        self.starter = RecordingStarter()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.settings = Settings(home=home, url=self.url, tick_s=0.05, **settings)
        self.run(self._start())

    @property
    def token(self) -> str:
        """The first operator's."""
        return (self.home / "token").read_text().strip()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something on the service's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=60)

    def close(self) -> None:
        """Stop it."""
        self.run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> None:
        self.controller = create_controller(self.settings, self.starter)
        await self.controller.start()
        config = uvicorn.Config(create_app(self.controller), log_level="error", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        while not self._server.started:
            await asyncio.sleep(0.01)

    async def _stop(self) -> None:
        self.controller.events.close()
        self._server.should_exit = True
        await self._serving
        await self.controller.stop()


@contextmanager
def served(home: Path, **settings: Any) -> Iterator[Served]:
    """A service for the time of the block."""
    service = Served(home, **settings)
    try:
        yield service
    finally:
        service.close()


class PlayedRun:
    """A job's rank 0 without processes: it opens the run, reports rounds, decides as the answers say."""

    def __init__(
        self,
        service: Served,
        job_id: str,
        *,
        controller: Controller | None = None,
        num_replicas: int = 3,
        total_steps: int = 900,
    ) -> None:
        self._service = service
        self._job_id = job_id
        self._num_replicas = num_replicas
        self._attempt = 1
        while all(launch.job_id != job_id for launch in service.starter.launches):
            service.run(service.controller.tick())
        service.run(
            service.controller.tick()
        )  # the service has seen the driver, as with Ray it would long since
        self.state, self.plan = start(config_of(controller or Auto(), total_steps=total_steps), num_replicas)
        self._known = [(self.state, self.plan)]
        self._open()

    def restart(self, round: int) -> None:
        """A new attempt goes on from the state before a round."""
        self._attempt += 1
        self.state, self.plan = self._known[round]
        del self._known[round + 1 :]
        self._open()

    def advance(self, rounds: int = 1) -> None:
        """Report this many rounds, or as many as there are left."""
        for _ in range(rounds):
            if self.plan.num_steps:
                self._round()

    def finish(self) -> None:
        """To the schedule's end, and tell so."""
        while self.plan.num_steps:
            self._round()
        self._tell_end("succeeded", "Completed", "")

    def fail(self, reason: str, message: str) -> None:
        """Tell that it failed for good."""
        self._tell_end("failed", reason, message)

    def _tell_end(self, outcome: str, reason: str, message: str) -> None:
        data = {"outcome": outcome, "reason": reason, "message": message}
        note = NoteRequest(job=self._job_id, attempt=self._attempt, submission=1, kind="finished", data=data)
        self._call("note", note)

    def _open(self) -> None:
        request = OpenRequest(
            job=self._job_id,
            attempt=self._attempt,
            submission=1,
            state=state_to_json(self.state),
            num_replicas=self._num_replicas,
            storage_path=str(self._service.home / "runs" / self._job_id),
        )
        self._call("open", request)

    def _round(self) -> None:
        report = _report(self.plan)
        request = ExchangeRequest(
            job=self._job_id,
            attempt=self._attempt,
            submission=1,
            round=report.round,
            report=to_json(report),
        )
        answer = self._call("exchange", request)
        self.state, self.plan = decide(self.state, replace(report, commands=answer.commands))
        if answer.plan_digest != digest(self.plan):
            raise AssertionError("the service decided otherwise than core does")
        self._known.append((self.state, self.plan))

    def _call(self, kind: str, request: Any) -> Any:
        answer = answer_from_json(
            self._service.run(self._service.controller.call(kind, request_to_json(request)))
        )
        if answer.status != "ok":
            raise AssertionError(f"{kind}: {answer.status} {answer.message}")
        return answer


def _report(plan: Plan) -> RoundReport:
    def replica(r: int) -> ReplicaReport:
        rate = plan.peak[RATE, 0] * plan.values[RATE, 0][r]
        loss = bowl(rate, 0.0 if plan.is_search else plan.step / plan.total_steps, r)
        return make_replica(loss, probe_loss=loss if plan.probe else None)

    return RoundReport(
        round=plan.round,
        calls=plan.num_steps,
        steps=plan.num_steps,
        plan_digest=digest(plan),
        replicas=tuple(replica(r) for r in range(plan.num_replicas)),
        untrained_loss=5.55 if plan.untrained_probe else None,
        facts={"wall_s": plan.num_steps * 0.02, "sync_s": 0.004, "sync_bytes": 0.0},
    )
