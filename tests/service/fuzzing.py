"""schemathesis against a whole service in this process: every phase and every check, as one caller.

What a schema can't say stands in `CONFIG`: which refusals a request that fits the schema may get, because
they hang on what is stored (an ETag, a package, a cursor) or on two fields together.
"""

from __future__ import annotations

import asyncio
import tomllib
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import Status, events, from_schema
from schemathesis.python.asgi import shutdown_lifespans

from tests.service.serving import Service, serving

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]

CONFIG = """
warnings = false

[generation]
max-examples = {max_examples}
deterministic = true
no-shrink = true
[checks.missing_required_header]
expected-statuses = ["401", "403", "422", "428"]  # 428 is what a missing If-Match gets

# A cursor is any text to a schema; one that this service did not write is refused.
[[operations]]
include-name = [
  "GET /v1/jobs",
  "GET /v1/tokens",
  "GET /v1/audit",
  "GET /v1/jobs/{{job_id}}/schedule/history",
  "GET /v1/jobs/{{job_id}}/events",
  "GET /v1/jobs/{{job_id}}/logs",
]
checks.positive_data_acceptance.expected-statuses = ["2xx", "400", "401", "403", "404"]
# min equals max, a package was uploaded, a config is not too large.
[[operations]]
include-name = "POST /v1/jobs"
checks.positive_data_acceptance.expected-statuses = ["2xx", "401", "403", "409", "422"]
# The body has the hash that the path says, and is a zip file.
[[operations]]
include-name = "PUT /v1/packages/{{sha256}}"
checks.positive_data_acceptance.expected-statuses = ["2xx", "401", "403", "422"]
# The ETag is the newest, the value lies within this run's bounds.
[[operations]]
include-name = [
  "POST /v1/jobs/{{job_id}}/schedule/overrides",
  "DELETE /v1/jobs/{{job_id}}/schedule/overrides/{{override_id}}",
  "PATCH /v1/jobs/{{job_id}}/schedule/auto",
]
checks.positive_data_acceptance.expected-statuses = ["2xx", "401", "403", "404", "409", "412", "422"]
"""


@dataclass
class Report:
    """What a run of schemathesis found."""

    num_cases: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)
    phases: Counter[str] = field(default_factory=Counter)
    checks: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


class Lifespan:
    """An ASGI application that is a service for as long as its server runs it, on the server's own loop."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self.service: Service | None = None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            if self.service is None:
                raise RuntimeError("a request came before the start")
            await self.service.app(scope, receive, send)
            return
        await receive()
        async with serving(self._home) as service:
            self.service = service
            workers = asyncio.create_task(_open_runs(service))
            await send({"type": "lifespan.startup.complete"})
            await receive()
            workers.cancel()
        await send({"type": "lifespan.shutdown.complete"})


async def _open_runs(service: Service) -> None:
    """Stands in for workers: each job that was started gets a schedule at once."""
    while True:
        await asyncio.sleep(0.02)
        for job in await service.controller.jobs.list(states=["STARTING"], limit=100):
            if job.submission > 0 and job.attempt == 0:
                await service.open_run(job.id, submission=job.submission)


def fuzz(home: Path, caller: str | None, max_examples: int) -> Report:
    """Run all phases with all checks against a service in this process.

    Args:
        home: Folder of the service.
        caller: Whose token is sent; None sends none.
        max_examples: Cases per operation in the fuzzing phase.
    """
    app = Lifespan(home)
    try:
        schema = schemathesis.openapi.from_asgi("/openapi.json", app, config=_config(max_examples))
        if app.service is None:
            raise RuntimeError("the service was not started")
        return _run(schema, app.service.headers(caller))
    finally:
        shutdown_lifespans()


def fuzz_url(url: str, token: str, max_examples: int) -> Report:
    """The same against a service that listens somewhere."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json", config=_config(max_examples))
    return _run(schema, {"Authorization": f"Bearer {token}"})


def _config(max_examples: int) -> SchemathesisConfig:
    return SchemathesisConfig.from_dict(tomllib.loads(CONFIG.format(max_examples=max_examples)))


def _run(schema: Any, headers: dict[str, str]) -> Report:
    schema.hook("map_body")(_with_plain_integers)
    schema.config.headers = headers
    report = Report()
    for event in from_schema(schema).execute():
        if isinstance(event, events.NonFatalError):
            report.failures.append(f"{event.label}: {event.value}")
        if isinstance(event, events.ScenarioFinished):
            _count(report, event)
    return report


def _with_plain_integers(context: Any, body: Any) -> Any:
    """To JSON Schema 2.0 is an integer; to this service it is none, on purpose."""
    if isinstance(body, dict):
        return {key: _with_plain_integers(context, value) for key, value in body.items()}
    if isinstance(body, list):
        return [_with_plain_integers(context, value) for value in body]
    return int(body) if isinstance(body, float) and body.is_integer() else body


def _count(report: Report, event: events.ScenarioFinished) -> None:
    recorder = event.recorder
    for id, interaction in recorder.interactions.items():
        report.num_cases += 1
        report.phases[str(event.phase)] += 1
        if id in recorder.cases:
            report.operations[recorder.cases[id].value.operation.label] += 1
        if interaction.response is not None:
            report.statuses[interaction.response.status_code] += 1
    for id, checks in recorder.checks.items():
        for check in checks:
            report.checks[check.name] += 1
            if check.status is Status.FAILURE:
                report.failures.append(_told(recorder, id, check))


def _told(recorder: Any, case_id: str, check: Any) -> str:
    case = recorder.cases[case_id].value
    interaction = recorder.interactions.get(case_id)
    response = interaction.response if interaction else None
    sent = f"{case.method} {case.formatted_path} query={case.query} headers={dict(case.headers or {})}"
    answer = "" if response is None else f"{response.status_code} {response.content[:600]!r}"
    failure = check.failure_info.failure if check.failure_info else ""
    return f"{check.name}: {failure}\n  {sent} body={case.body!r:.800}\n  {answer}"
