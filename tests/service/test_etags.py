"""ETags: who changes a schedule names the one that he has seen; who reads is not sent what he has."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.service.serving import OPERATOR, SPEC, VIEWER, Served

BODY = {"hparam": "lr", "op": "scale", "value": 0.5, "reason": "too fast"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("home"))
    yield served
    served.close()


async def _override(served: Served, job_id: str, etag: str | None, **body: Any) -> httpx.Response:
    headers = {} if etag is None else {"If-Match": etag}
    path = f"/v1/jobs/{job_id}/schedule/overrides"
    return await served.service.call(OPERATOR, "POST", path, json={**BODY, **body}, headers=headers)


async def _schedule(served: Served, job_id: str) -> httpx.Response:
    return await served.service.call(VIEWER, "GET", f"/v1/jobs/{job_id}/schedule")


def test_of_50_overrides_at_once_on_one_etag_one_wins(served: Served) -> None:
    async def ask() -> tuple[Counter[int], httpx.Response]:
        job_id = await served.service.submit_open()
        etag = (await _schedule(served, job_id)).headers["etag"]
        answers = await asyncio.gather(*(_override(served, job_id, etag) for _ in range(50)))
        return Counter(answer.status_code for answer in answers), await _schedule(served, job_id)

    statuses, schedule = served.run(ask())
    assert statuses == {202: 1, 412: 49}
    assert len(schedule.json()["overrides"]) == 1
    assert schedule.headers["etag"] == '"1"'


def test_an_override_without_if_match_is_refused_and_says_where_to_get_it(served: Served) -> None:
    async def ask() -> httpx.Response:
        return await _override(served, await served.service.submit_open(), None)

    answer = served.run(ask())
    assert answer.status_code == 428
    assert "GET" in answer.json()["detail"]


@pytest.mark.parametrize("bad", ["7", "x", '"a', "", '"1" "2"'])
def test_an_if_match_that_is_no_etag_is_named(served: Served, bad: str) -> None:
    async def ask() -> httpx.Response:
        return await _override(served, await served.service.submit_open(), bad)

    answer = served.run(ask())
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "If-Match"


def test_every_change_of_an_operator_gives_a_new_etag_and_the_answer_names_it(served: Served) -> None:
    async def ask() -> list[tuple[int, str]]:
        service = served.service
        job_id = await service.submit_open()
        base = f"/v1/jobs/{job_id}/schedule"
        seen = []
        added = await _override(served, job_id, '"0"')
        seen.append((added.status_code, added.headers["etag"]))
        oid = added.json()["id"]
        assert added.headers["location"] == f"{base}/overrides/{oid}"
        patched = await service.call(
            OPERATOR,
            "PATCH",
            f"{base}/auto",
            json={"hparam": "lr", "frozen": True},
            headers={"If-Match": '"1"'},
        )
        seen.append((patched.status_code, patched.headers["etag"]))
        removed = await service.call(
            OPERATOR, "DELETE", f"{base}/overrides/{oid}", headers={"If-Match": '"2"'}
        )
        seen.append((removed.status_code, removed.headers["etag"]))
        stale = await service.call(
            OPERATOR,
            "PATCH",
            f"{base}/auto",
            json={"hparam": "lr", "frozen": False},
            headers={"If-Match": '"2"'},
        )
        seen.append((stale.status_code, (await _schedule(served, job_id)).headers["etag"]))
        return seen

    assert served.run(ask()) == [(202, '"1"'), (202, '"2"'), (202, '"3"'), (412, '"3"')]


def test_a_preview_changes_nothing(served: Served) -> None:
    async def ask() -> tuple[httpx.Response, httpx.Response]:
        job_id = await served.service.submit_open()
        path = f"/v1/jobs/{job_id}/schedule/overrides?dry_run=true"
        headers = {"If-Match": '"0"'}
        preview = await served.service.call(OPERATOR, "POST", path, json=BODY, headers=headers)
        return preview, await _schedule(served, job_id)

    preview, schedule = served.run(ask())
    assert preview.status_code == 200
    assert preview.json()["changes"]
    assert schedule.headers["etag"] == '"0"'
    assert schedule.json()["overrides"] == []


def test_a_job_that_did_not_change_is_not_sent_again(served: Served) -> None:
    async def ask() -> list[httpx.Response]:
        service = served.service
        answer = await service.call(OPERATOR, "POST", "/v1/jobs", json=SPEC)
        path = f"/v1/jobs/{answer.json()['id']}"
        await service.controller.tick()
        first = await service.call(OPERATOR, "GET", path)
        known = {"If-None-Match": first.headers["etag"]}
        second = await service.call(OPERATOR, "GET", path, headers=known)
        await service.call(OPERATOR, "POST", f"{path}/cancel")
        third = await service.call(OPERATOR, "GET", path, headers=known)
        return [first, second, third]

    first, second, third = served.run(ask())
    assert [first.status_code, second.status_code, third.status_code] == [200, 304, 200]
    assert second.content == b""
    assert second.headers["etag"] == first.headers["etag"]
    assert third.headers["etag"] != first.headers["etag"]
