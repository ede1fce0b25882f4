"""Who may: each call, as each role, on a job of one's own, another's, and one that isn't there."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from hdet_service.store.models import Audit, Event
from tests.service.serving import (
    OPERATOR,
    OTHER_SUBMITTER,
    SCRAPER,
    SPEC,
    SUBMITTER,
    VIEWER,
    Served,
    Service,
)

ABSENT = "01JQ7Z3X4M9V6K2T8B5N1C0D7E"

READ = {VIEWER, SUBMITTER, OPERATOR}
CHANGE = {SUBMITTER, OPERATOR}
OPERATE = {OPERATOR}
EVERYONE = {SCRAPER, VIEWER, SUBMITTER, OPERATOR}
CALLERS = (None, SCRAPER, VIEWER, SUBMITTER, OPERATOR)


@dataclass(frozen=True)
class Call:
    """One call of the API, who may make it, and what it answers then."""

    method: str
    path: str
    allowed: set[str]
    good: int
    """Status for who may, on a job that has just been opened by its worker."""
    how: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


IF_MATCH = {"headers": {"If-Match": '"0"'}}
OVERRIDE = {"json": {"hparam": "lr", "op": "scale", "value": 0.5, "reason": "x"}, **IF_MATCH}

OF_A_JOB = (
    Call("GET", "/v1/jobs/{id}", READ, 200),
    Call("DELETE", "/v1/jobs/{id}", CHANGE, 409),
    Call("POST", "/v1/jobs/{id}/cancel", CHANGE, 202),
    Call("POST", "/v1/jobs/{id}/pause", CHANGE, 202),
    Call("POST", "/v1/jobs/{id}/resume", CHANGE, 202),
    Call("GET", "/v1/jobs/{id}/replicas", READ, 200),
    Call("GET", "/v1/jobs/{id}/checkpoints", READ, 200),
    Call("GET", "/v1/jobs/{id}/checkpoints/3/export", READ, 404),
    Call("GET", "/v1/jobs/{id}/events", READ, 200),
    Call("GET", "/v1/jobs/{id}/logs", READ, 200),
    Call("GET", "/v1/jobs/{id}/schedule", READ, 200),
    Call("GET", "/v1/jobs/{id}/schedule/history", READ, 200),
    Call("POST", "/v1/jobs/{id}/schedule/overrides", OPERATE, 202, OVERRIDE),
    Call("POST", "/v1/jobs/{id}/schedule/overrides?dry_run=true", OPERATE, 200, OVERRIDE),
    Call("GET", "/v1/jobs/{id}/schedule/overrides/01X", READ, 404),
    Call("DELETE", "/v1/jobs/{id}/schedule/overrides/01X", OPERATE, 404),
    Call("POST", "/v1/jobs/{id}/schedule/rollback", OPERATE, 409, {"json": {"round": 3}}),
    Call("PATCH", "/v1/jobs/{id}/schedule/auto", OPERATE, 202, {"json": {"hparam": "lr", "frozen": True}}),
)
"""404 for who may: the thing inside the job is absent."""

OF_THE_SERVICE = (
    Call("GET", "/v1/jobs", READ, 200),
    Call("POST", "/v1/jobs", CHANGE, 201, {"json": SPEC}),
    Call("POST", "/v1/jobs?dry_run=true", CHANGE, 200, {"json": SPEC}),
    Call("PUT", "/v1/packages/" + "0" * 64, CHANGE, 422, {"headers": {"Content-Type": "application/zip"}}),
    Call("GET", "/v1/whoami", EVERYONE, 200),
    Call("GET", "/v1/tokens", OPERATE, 200),
    Call("POST", "/v1/tokens", OPERATE, 409, {"json": {"name": "sam", "role": "viewer"}}),
    Call("DELETE", "/v1/tokens/nobody", OPERATE, 404),
    Call("GET", "/v1/audit", OPERATE, 200),
    Call("POST", "/v1/drain", OPERATE, 202, {"json": {"draining": False}}),
    Call("GET", "/metrics", {SCRAPER, VIEWER, OPERATOR}, 200),
)

OPEN = (
    Call("GET", "/healthz", EVERYONE, 200),
    Call("GET", "/readyz", EVERYONE, 200),
    Call("GET", "/openapi.json", EVERYONE, 200),
    Call("GET", "/docs", EVERYONE, 200),
)


OWNERS = {"own": SUBMITTER, "other": OTHER_SUBMITTER}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("home"))
    yield served
    served.close()


@pytest.fixture(scope="module")
def kept_jobs(served: Served) -> dict[str, str]:
    """Jobs that are only read, or that nobody gets to change."""
    jobs = {whose: served.run(served.service.submit_open(owner)) for whose, owner in OWNERS.items()}
    return {**jobs, "absent": ABSENT}


async def _ask(service: Service, caller: str | None, call: Call, job_id: str) -> httpx.Response:
    return await service.call(caller, call.method, call.path.replace("{id}", job_id), **call.how)


def _check_refusal(answer: httpx.Response, caller: str | None, call: Call) -> bool:
    """Whether the caller's role is refused at all, which must then be said rightly."""
    if caller is None:
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")
    elif caller not in call.allowed:
        assert answer.status_code == 403
        assert any(f"'{role}'" in answer.json()["detail"] for role in ("operator", "submitter", "viewer"))
    else:
        return False
    assert answer.headers["content-type"] == "application/problem+json"
    return True


@pytest.mark.parametrize("whose", ["own", "other", "absent"])
@pytest.mark.parametrize("caller", CALLERS, ids=str)
@pytest.mark.parametrize("call", OF_A_JOB, ids=str)
def test_each_role_may_do_on_each_job_just_what_the_design_says(
    served: Served, kept_jobs: dict[str, str], call: Call, caller: str | None, whose: str
) -> None:
    async def ask() -> httpx.Response:
        changes = call.method != "GET" and caller in call.allowed and whose != "absent"
        job_id = await served.service.submit_open(OWNERS[whose]) if changes else kept_jobs[whose]
        return await _ask(served.service, caller, call, job_id)

    answer = served.run(ask())
    if _check_refusal(answer, caller, call):
        return
    may_see = whose == "own" or (whose == "other" and caller != SUBMITTER)
    assert answer.status_code == (call.good if may_see else 404), answer.text
    if not may_see:
        assert answer.json()["type"] == "urn:hdet:problem:not-found"


@pytest.mark.parametrize("caller", CALLERS, ids=str)
@pytest.mark.parametrize("call", OF_THE_SERVICE, ids=str)
def test_each_role_may_do_on_the_service_just_what_the_design_says(
    served: Served, call: Call, caller: str | None
) -> None:
    answer = served.run(_ask(served.service, caller, call, ""))
    if not _check_refusal(answer, caller, call):
        assert answer.status_code == call.good, answer.text


@pytest.mark.parametrize("caller", CALLERS, ids=str)
@pytest.mark.parametrize("call", OPEN, ids=str)
def test_some_calls_are_open_to_anyone(served: Served, call: Call, caller: str | None) -> None:
    assert served.run(_ask(served.service, caller, call, "")).status_code == call.good


def test_the_table_names_every_call_of_the_api(served: Served) -> None:
    known = {
        (call.method, call.path.split("?")[0].replace("{id}", "{job_id}").replace("01X", "{override_id}"))
        for call in (*OF_A_JOB, *OF_THE_SERVICE, *OPEN)
    }
    for method, path in served.service.app.openapi()["paths"].items():
        for verb in path:
            name = method.replace("{round}", "3").replace("{sha256}", "0" * 64).replace("{name}", "nobody")
            assert (verb.upper(), name) in known


@pytest.mark.parametrize("call", OF_A_JOB, ids=str)
def test_anothers_job_looks_like_one_that_is_not_there(
    served: Served, kept_jobs: dict[str, str], call: Call
) -> None:
    job_id = kept_jobs["other"]
    others = served.run(_ask(served.service, SUBMITTER, call, job_id))
    absent = served.run(_ask(served.service, SUBMITTER, call, ABSENT))
    assert others.status_code == absent.status_code
    assert others.text.replace(job_id, ABSENT) == absent.text
    assert dict(others.headers) == dict(absent.headers)


def test_a_submitter_lists_its_own_jobs_only(served: Served) -> None:
    async def ask() -> tuple[Any, Any, str, str]:
        own = await served.service.submit(SUBMITTER)
        others = await served.service.submit(OTHER_SUBMITTER)
        mine = (await served.service.call(SUBMITTER, "GET", "/v1/jobs")).json()["items"]
        all_of_them = (await served.service.call(VIEWER, "GET", "/v1/jobs")).json()["items"]
        return mine, all_of_them, own, others

    mine, all_of_them, own, others = served.run(ask())
    assert own in [job["id"] for job in mine]
    assert {job["owner"] for job in mine} == {SUBMITTER}
    assert {own, others} <= {job["id"] for job in all_of_them}


def test_a_revoked_token_is_refused_at_once_and_its_name_is_never_used_again(tmp_path: Path) -> None:
    served = Served(tmp_path)

    async def ask() -> list[int]:
        service = served.service
        statuses = []
        for caller, method, path, how in (
            (VIEWER, "GET", "/v1/whoami", {}),
            (OPERATOR, "DELETE", f"/v1/tokens/{VIEWER}", {}),
            (VIEWER, "GET", "/v1/whoami", {}),
            (OPERATOR, "DELETE", f"/v1/tokens/{VIEWER}", {}),
            (OPERATOR, "POST", "/v1/tokens", {"json": {"name": VIEWER, "role": "viewer"}}),
            (OPERATOR, "DELETE", f"/v1/tokens/{OPERATOR}", {}),
        ):
            statuses.append((await service.call(caller, method, path, **how)).status_code)
        return statuses

    try:
        assert served.run(ask()) == [200, 204, 401, 404, 409, 409]
    finally:
        served.close()


def test_no_token_appears_in_an_answer_the_log_or_the_database(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    served = Served(tmp_path)
    bad = "hdet_" + "b4d" * 14

    async def ask() -> str:
        service = served.service
        job_id = await service.submit(SUBMITTER)
        texts = []
        for caller, path in (
            (SUBMITTER, f"/v1/jobs/{job_id}"),
            (OPERATOR, "/v1/tokens"),
            (OPERATOR, "/v1/audit"),
        ):
            texts.append((await service.call(caller, "GET", path)).text)
        refused = await service.call(None, "GET", "/v1/whoami", headers={"Authorization": f"Bearer {bad}"})
        texts.append(refused.text)

        def rows(session: Any) -> str:
            return str([[r.before, r.after, r.reason] for r in session.query(Audit)]) + str(
                [r.data for r in session.query(Event)]
            )

        return "\n".join([*texts, await service.controller.store.read(rows)])

    text = served.run(ask())
    secrets = [*served.service.tokens.values(), bad]
    served.close()
    held = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != "token"]
    for secret in secrets:
        assert secret not in text
        assert secret not in caplog.text
        assert not any(secret.encode() in data for data in held)


def test_the_first_operators_token_is_for_its_owner_alone(tmp_path: Path) -> None:
    served = Served(tmp_path)
    served.close()
    assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "session.key").stat().st_mode & 0o777 == 0o600
