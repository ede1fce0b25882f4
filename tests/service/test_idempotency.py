"""Idempotency keys: a submission that is repeated, at once or later, stays one job."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.service.serving import OTHER_SUBMITTER, SPEC, SUBMITTER, Served


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("home"))
    yield served
    served.close()


async def _submit(served: Served, key: str, caller: str = SUBMITTER, **spec: Any) -> httpx.Response:
    return await served.service.call(
        caller, "POST", "/v1/jobs", json={**SPEC, **spec}, headers={"Idempotency-Key": key}
    )


def test_200_submissions_at_once_with_20_keys_are_20_jobs(served: Served) -> None:
    async def ask() -> tuple[list[httpx.Response], int]:
        answers = await asyncio.gather(
            *(_submit(served, f"key-{n % 20}", name=f"n{n % 20}") for n in range(200))
        )
        page = await served.service.call(SUBMITTER, "GET", "/v1/jobs?limit=200")
        return list(answers), len(page.json()["items"])

    answers, stored = served.run(ask())
    assert stored == 20
    statuses = Counter(answer.status_code for answer in answers)
    assert statuses[201] == 20
    assert set(statuses) <= {200, 201, 409}
    for answer in answers:
        if answer.status_code == 409:
            assert answer.json()["type"] == "urn:hdet:problem:idempotency-in-flight"
            assert answer.headers["retry-after"] == "1"
    ids = {answer.json()["id"] for answer in answers if answer.status_code < 300}
    assert len(ids) == 20


def test_a_repetition_while_the_first_is_still_answered_is_told_to_come_again(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = served.service.controller.jobs
    submit = jobs.submit

    async def ask() -> tuple[httpx.Response, httpx.Response, httpx.Response]:
        may_go_on = asyncio.Event()
        has_begun = asyncio.Event()

        async def slow(*args: Any) -> Any:
            has_begun.set()
            await may_go_on.wait()
            return await submit(*args)

        monkeypatch.setattr(jobs, "submit", slow)
        first = asyncio.create_task(_submit(served, "in-flight"))
        await has_begun.wait()
        during = await _submit(served, "in-flight")
        may_go_on.set()
        return await first, during, await _submit(served, "in-flight")

    first, during, after = served.run(ask())
    assert [first.status_code, during.status_code, after.status_code] == [201, 409, 200]
    assert during.json()["type"] == "urn:hdet:problem:idempotency-in-flight"
    assert during.headers["retry-after"] == "1"
    assert after.json()["id"] == first.json()["id"]


def test_the_same_key_and_body_get_the_first_answer_again(served: Served) -> None:
    first = served.run(_submit(served, "again"))
    second = served.run(_submit(served, "again"))
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json()["id"] == second.json()["id"]
    assert first.headers["location"] == second.headers["location"]


def test_a_body_that_says_the_same_in_another_order_is_the_same(served: Served) -> None:
    async def ask() -> list[httpx.Response]:
        headers = {"Idempotency-Key": "order"}
        bodies = (SPEC, dict(reversed(SPEC.items())))
        return [
            await served.service.call(SUBMITTER, "POST", "/v1/jobs", json=body, headers=headers)
            for body in bodies
        ]

    assert [answer.status_code for answer in served.run(ask())] == [201, 200]


def test_the_same_key_with_another_body_is_refused(served: Served) -> None:
    served.run(_submit(served, "other"))
    answer = served.run(_submit(served, "other", name="y"))
    assert answer.status_code == 422
    assert answer.json()["type"] == "urn:hdet:problem:idempotency-mismatch"


def test_keys_of_different_callers_have_nothing_to_do_with_each_other(served: Served) -> None:
    first = served.run(_submit(served, "shared"))
    second = served.run(_submit(served, "shared", OTHER_SUBMITTER))
    assert (first.status_code, second.status_code) == (201, 201)


def test_a_preview_uses_up_no_key(served: Served) -> None:
    async def ask() -> list[int]:
        headers = {"Idempotency-Key": "preview"}
        paths = ("/v1/jobs?dry_run=true", "/v1/jobs")
        return [
            (await served.service.call(SUBMITTER, "POST", path, json=SPEC, headers=headers)).status_code
            for path in paths
        ]

    assert served.run(ask()) == [200, 201]


def test_a_refused_submission_uses_up_no_key(served: Served) -> None:
    refused = served.run(_submit(served, "refused", runtime_env={"working_dir": "f" * 64}))
    taken = served.run(_submit(served, "refused"))
    assert (refused.status_code, taken.status_code) == (422, 201)
