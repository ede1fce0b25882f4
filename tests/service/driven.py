"""A controller in this process that a test drives by hand, with a Ray that only records."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Self, TypeVar

from sqlalchemy import select

from hdet_ray.config import Auto
from hdet_ray.core.decide import start
from hdet_ray.core.state import state_to_json
from hdet_ray.train.protocol import PROTOCOL
from hdet_service.auth import Principal, Role
from hdet_service.controller import Controller, create_controller
from hdet_service.schemas import JobSpec
from hdet_service.settings import Settings
from hdet_service.starter import RecordingStarter
from hdet_service.store.models import Event, Job, Transition
from tests.service.recorded_runs import config_of

T = TypeVar("T")

SAM = Principal("sam", Role.SUBMITTER)
BOSS = Principal("boss", Role.OPERATOR)
SPEC: dict[str, Any] = {"name": "x", "entrypoint": "byte_lm", "replicas": {"min": 2, "max": 2}}


class Driven:
    """One service home; `restart` is what a killed controller's successor finds."""

    def __init__(self, home: Path, **settings: Any) -> None:
        self.home = home
        self.now_s = 1_000_000.0
        self.starter = RecordingStarter()
        self._settings = Settings(home=home, **settings)
        self._runner = asyncio.Runner()
        self.controller = self._begin()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self.controller.stop())
        self._runner.close()

    def _begin(self) -> Controller:
        controller = create_controller(self._settings, self.starter, clock=lambda: self.now_s)
        loop = self._runner.get_loop()
        controller.events.attach(loop)
        controller.steps.acts.attach(loop)
        return controller

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Where the controller runs."""
        return self._runner.get_loop()

    def restart(self) -> None:
        """Another controller on the same database: nothing else is left of the first."""
        self.run(self.controller.stop())
        self.controller = self._begin()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine."""
        return self._runner.run(work)

    def tick(self, seconds: float = 0.0) -> None:
        """Let time pass, then look around once."""
        self.now_s += seconds
        self.run(self.controller.tick())

    def submit(self, key: str | None = None, **spec: Any) -> str:
        """Id of a new job."""
        given = JobSpec.model_validate({**SPEC, **spec})
        job, _ = self.run(self.controller.jobs.submit(given, SAM, key, str(spec)))
        return job.id

    def job(self, job_id: str) -> Job:
        """Its row."""
        return self.run(self.controller.jobs.get(job_id))

    def state(self, job_id: str) -> tuple[str, str]:
        """State and reason."""
        job = self.job(job_id)
        return job.state, job.reason

    def sid(self, job_id: str) -> str:
        """Ray's id of its newest driver."""
        return f"hdet-{job_id}-{self.job(job_id).submission}"

    def note(self, job_id: str, kind: str, submission: int | None = None, **data: Any) -> str:
        """What a driver tells; the answer's status."""
        number = self.job(job_id).submission if submission is None else submission
        request = {"protocol": PROTOCOL, "job": job_id, "submission": number, "kind": kind, "data": data}
        return str(self.run(self.controller.call("note", request))["status"])

    def open(self, job_id: str, attempt: int = 1, num_replicas: int = 2) -> None:
        """A worker group begins an attempt."""
        request = {
            "protocol": PROTOCOL,
            "job": job_id,
            "attempt": attempt,
            "submission": self.job(job_id).submission,
            "state": state_to_json(start(config_of(Auto()), 2)[0]),
            "num_replicas": num_replicas,
        }
        assert self.run(self.controller.call("open", request))["status"] == "ok"

    def submit_running(self, **spec: Any) -> str:
        """Id of a job that trains."""
        job_id = self.submit(**spec)
        self.tick()
        self.note(job_id, "imported")
        self.open(job_id)
        assert self.state(job_id) == ("RUNNING", "Running")
        return job_id

    def transitions(self, job_id: str) -> list[str]:
        """States in order, each as often as it was entered."""
        query = select(Transition.state).where(Transition.job_id == job_id).order_by(Transition.id)
        return self.controller.store.read_sync(lambda session: list(session.scalars(query)))

    def events(self, job_id: str, type: str) -> list[dict[str, Any]]:
        """Data of the events of one type."""
        query = select(Event.data).where(Event.job_id == job_id, Event.type == type).order_by(Event.id)
        return self.controller.store.read_sync(lambda session: list(session.scalars(query)))
