"""A whole service in this process: real store, jobs and runs; no socket; drivers only recorded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from hdet_ray.config import Auto
from hdet_ray.core.decide import start
from hdet_ray.core.state import state_to_json
from hdet_ray.train.protocol import PROTOCOL
from hdet_service.app import create_app
from hdet_service.auth import Principal, Role
from hdet_service.controller import Controller, create_controller
from hdet_service.settings import Settings
from hdet_service.starter import RecordingStarter
from tests.service.recorded_runs import config_of

SPEC: dict[str, Any] = {"name": "x", "entrypoint": "byte_lm", "replicas": {"min": 2, "max": 2}}

OPERATOR = "operator"
SUBMITTER = "sam"
OTHER_SUBMITTER = "otto"
VIEWER = "vera"
SCRAPER = "prom"


@dataclass
class Service:
    """A running service and the tokens of its callers."""

    app: FastAPI
    controller: Controller
    starter: RecordingStarter
    tokens: dict[str, str]
    answers: list[httpx.Response] = field(default_factory=list)

    def headers(self, caller: str | None) -> dict[str, str]:
        """Authorization of a caller; nothing for None."""
        return {} if caller is None else {"Authorization": f"Bearer {self.tokens[caller]}"}

    async def call(
        self,
        caller: str | None,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        **how: Any,
    ) -> httpx.Response:
        """One request."""
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://hdet.test") as client:
            return await client.request(
                method, path, headers={**self.headers(caller), **(headers or {})}, **how
            )

    async def submit(self, owner: str = SUBMITTER, **spec: Any) -> str:
        """Id of a new job."""
        answer = await self.call(owner, "POST", "/v1/jobs", json={**SPEC, **spec})
        assert answer.status_code == 201, answer.text
        job_id: str = answer.json()["id"]
        return job_id

    async def submit_open(self, owner: str = SUBMITTER, **spec: Any) -> str:
        """Id of a new job whose worker has opened its run: it has a schedule."""
        job_id = await self.submit(owner, **spec)
        await self.controller.tick()
        job = await self.controller.jobs.get(job_id)
        assert job.submission == 1, (job.state, job.reason)
        answer = await self.open_run(job_id)
        assert answer["status"] == "ok", answer
        return job_id

    async def open_run(self, job_id: str, *, submission: int = 1) -> Mapping[str, Any]:
        """What a job's worker says first."""
        return await self.controller.call(
            "open",
            {
                "protocol": PROTOCOL,
                "job": job_id,
                "attempt": 1,
                "submission": submission,
                "state": state_to_json(start(config_of(Auto()), 2)[0]),
                "num_replicas": 2,
            },
        )


@asynccontextmanager
async def serving(home: Path, **settings: Any) -> AsyncIterator[Service]:
    """A service with one token of each kind; generous with requests unless told otherwise."""
    given = {"requests_per_s": 1e6, "request_burst": 1_000_000, "max_running_jobs": 1000, **settings}
    starter = RecordingStarter()
    controller = create_controller(Settings(home=home, **given), starter)
    app = create_app(controller)
    await controller.start()
    tokens = {OPERATOR: controller.settings.token_path.read_text()}
    boss = Principal(OPERATOR, Role.OPERATOR)
    for name, role in (
        (SUBMITTER, Role.SUBMITTER),
        (OTHER_SUBMITTER, Role.SUBMITTER),
        (VIEWER, Role.VIEWER),
        (SCRAPER, Role.METRICS),
    ):
        tokens[name], _ = await app.state.tokens.create(name, role, boss)
    try:
        yield Service(app=app, controller=controller, starter=starter, tokens=tokens)
    finally:
        await controller.stop()


class Served:
    """A service that several tests share, each of which runs on its loop."""

    def __init__(self, home: Path, **settings: Any) -> None:
        self._runner = asyncio.Runner()
        self._context = serving(home, **settings)
        self.service = self._runner.run(self._context.__aenter__())

    def run(self, work: Any) -> Any:
        """The result of a coroutine."""
        return self._runner.run(work)

    def close(self) -> None:
        """Stop the service."""
        self._runner.run(self._context.__aexit__(None, None, None))
        self._runner.close()
