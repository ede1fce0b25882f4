"""The client's promises, over a transport in memory: what is sent, what is repeated, what errors say."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

import hdet_service.client as public
from hdet_ray.exceptions import ConfigError, HDETError
from hdet_service.client import (
    AmbiguousJob,
    AsyncHDETClient,
    Conflict,
    HDETClient,
    Invalid,
    NotFound,
    Retries,
    ServiceFailed,
    TooMany,
    Unauthorized,
    UnexpectedAnswer,
    Unreachable,
)
from hdet_service.client._retries import retry_after_s

URL = "http://service.test"
SPEC = {"name": "x", "entrypoint": "byte_lm", "replicas": {"min": 3, "max": 3}}
JOB_ID = "01K9ZZZZZZ0000000000000001"


class Service:
    """Answers requests from a script and keeps them."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []
        self.waits: list[float] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def client(self, **settings: Any) -> HDETClient:
        transport = httpx.MockTransport(self)
        return HDETClient(URL, "secret", transport=transport, sleep=self.waits.append, **settings)


def job(job_id: str = JOB_ID, name: str = "x", state: str = "RUNNING") -> dict[str, Any]:
    return {"id": job_id, "name": name, "state": state, "reason": "Running", "message": ""}


def answer(status: int = 200, body: Any = None, **headers: str) -> httpx.Response:
    return httpx.Response(status, json=body, headers=headers)


def problem(status: int, detail: str = "no", **more: Any) -> httpx.Response:
    document = {"type": "urn:hdet:problem:x", "title": "No", "status": status, "detail": detail, **more}
    headers = {"content-type": "application/problem+json"}
    return httpx.Response(status, content=json.dumps(document), headers=headers)


PUBLIC_NAMES = """
    AmbiguousJob AsyncHDETClient Checkpoint ClientError Conflict Event Forbidden HDETClient Invalid Job
    NotFound Override PackageError PreconditionFailed Problem Progress Refused ReplicaCount Retries Role
    Schedule SchedulePoint ServiceFailed TERMINAL_STATES TokenInfo TooLarge TooMany Unauthorized
    UnexpectedAnswer Unreachable describe_package
"""


def test_the_public_names_are_these() -> None:
    assert set(public.__all__) == set(PUBLIC_NAMES.split())
    assert {name for name in dir(public) if not name.startswith("_")} == set(PUBLIC_NAMES.split())


def test_both_clients_have_the_same_methods() -> None:
    def methods(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    assert methods(HDETClient) == methods(AsyncHDETClient)


def test_every_error_is_one_of_the_librarys() -> None:
    kinds = [k for k in vars(public).values() if isinstance(k, type) and issubclass(k, Exception)]
    assert len(kinds) > 10
    assert all(issubclass(kind, HDETError) for kind in kinds)


def test_the_token_travels_as_a_bearer_and_shows_in_no_repr() -> None:
    service = Service(answer(200, {"name": "me", "role": "operator"}))
    with service.client() as client:
        client.whoami()
        assert "secret" not in repr(vars(client))
    assert service.requests[0].headers["authorization"] == "Bearer secret"


def test_a_submission_is_repeated_under_one_key_when_its_answer_is_lost() -> None:
    service = Service(httpx.ReadError("cut"), problem(503), answer(201, job()))
    with service.client() as client:
        assert client.submit(SPEC)["id"] == JOB_ID
    keys = {request.headers["idempotency-key"] for request in service.requests}
    assert (len(service.requests), len(keys)) == (3, 1)


def test_two_submissions_have_two_keys() -> None:
    service = Service(answer(201, job()))
    with service.client() as client:
        client.submit(SPEC)
        client.submit(SPEC)
    assert len({request.headers["idempotency-key"] for request in service.requests}) == 2


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.override("a", {"hparam": "lr", "op": "scale", "value": 0.5}, if_match=3),
        lambda client: client.rollback("a", 4),
        lambda client: client.steer("a", "lr", frozen=True),
        lambda client: client.pause("a"),
        lambda client: client.create_token("ci", "viewer"),
    ],
    ids=["override", "rollback", "steer", "pause", "create_token"],
)
def test_a_change_whose_answer_is_lost_is_not_made_again(call: Callable[[HDETClient], Any]) -> None:
    service = Service(httpx.ReadError("cut"), answer(200, {}))
    with service.client() as client, pytest.raises(Unreachable, match="may have been made"):
        call(client)
    assert len(service.requests) == 1


def test_a_change_that_was_never_sent_is_made_again() -> None:
    service = Service(httpx.ConnectError("refused"), answer(200, {"round": 4}))
    with service.client() as client:
        client.rollback("a", 4)
    assert len(service.requests) == 2


def test_a_service_that_is_down_is_unreachable_with_a_remedy() -> None:
    service = Service(httpx.ConnectError("[Errno 111] Connection refused"))
    with service.client() as client, pytest.raises(Unreachable, match=r"http://service.test .*`hdet up`"):
        client.whoami()
    assert len(service.requests) == Retries().max_attempts
    assert service.waits == sorted(service.waits)


def test_retry_after_is_obeyed() -> None:
    service = Service(answer(429, {}, **{"Retry-After": "3"}), answer(200, {"name": "me"}))
    with service.client() as client:
        client.whoami()
    assert service.waits == [3.0]


def test_a_retry_after_beyond_patience_is_told_instead_of_waited_for() -> None:
    service = Service(answer(429, {"detail": "too many"}, **{"Retry-After": "3600"}))
    with service.client() as client, pytest.raises(TooMany) as caught:
        client.whoami()
    assert caught.value.retry_after_s == 3600
    assert service.waits == []


def test_a_retry_after_may_be_a_date() -> None:
    now = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
    assert retry_after_s("Tue, 24 Nov 2026 12:00:07 GMT", now=now) == 7
    assert retry_after_s("Tue, 24 Nov 2026 11:00:00 GMT", now=now) == 0
    assert retry_after_s("soon", now=now) is None


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, Unauthorized), (404, NotFound), (409, Conflict), (422, Invalid), (500, ServiceFailed)],
)
def test_each_refusal_has_its_own_error_with_the_problem_in_it(status: int, kind: type[Exception]) -> None:
    service = Service(problem(status, "this is why"))
    with service.client() as client, pytest.raises(kind, match="this is why") as caught:
        client.job("a")
    assert caught.value.problem.status == status  # type: ignore[attr-defined]


def test_offending_fields_are_in_the_text() -> None:
    fields = [{"field": "replicas.min", "message": "must be at least 1"}]
    service = Service(problem(422, "invalid", errors=fields))
    with service.client() as client, pytest.raises(Invalid, match=r"replicas\.min: must be at least 1"):
        client.submit(SPEC)


def test_a_page_that_is_no_problem_document_still_makes_a_refusal() -> None:
    service = Service(httpx.Response(403, text="<html>denied by proxy</html>"))
    with service.client() as client, pytest.raises(HDETError, match="403 Forbidden"):
        client.whoami()


def test_another_server_at_the_address_is_recognized() -> None:
    service = Service(httpx.Response(200, text="<html>hello</html>", headers={"content-type": "text/html"}))
    with service.client() as client, pytest.raises(UnexpectedAnswer, match="text/html"):
        client.whoami()


def test_a_redirect_is_not_followed_with_the_token() -> None:
    service = Service(httpx.Response(302, headers={"location": "http://elsewhere.test/"}))
    with service.client() as client, pytest.raises(UnexpectedAnswer, match=r"elsewhere\.test"):
        client.whoami()
    assert len(service.requests) == 1


def test_pages_are_followed_to_the_end_and_fetched_when_needed() -> None:
    service = Service(
        answer(200, {"items": [job("a"), job("b")], "next": "c1"}),
        answer(200, {"items": [job("c")], "next": None}),
    )
    with service.client() as client:
        jobs = client.jobs(states=["RUNNING", "QUEUED"], labels={"team": "nlp"})
        assert next(jobs)["id"] == "a"
        assert len(service.requests) == 1
        assert [found["id"] for found in jobs] == ["b", "c"]
    first, second = (request.url.params for request in service.requests)
    assert first.get_list("state") == ["RUNNING", "QUEUED"]
    assert first["label"] == "team=nlp"
    assert second["cursor"] == "c1"


def test_a_repeated_delete_that_finds_nothing_has_done_its_work() -> None:
    service = Service(httpx.ReadError("cut"), problem(404))
    with service.client() as client:
        client.delete("a")
    assert len(service.requests) == 2


def test_a_first_delete_that_finds_nothing_says_so() -> None:
    with Service(problem(404)).client() as client, pytest.raises(NotFound):
        client.delete("a")


def test_an_override_names_the_revision_as_an_etag() -> None:
    service = Service(answer(202, {"id": "o", "state": "pending"}))
    with service.client() as client:
        client.override("a", {"hparam": "lr", "op": "set", "value": 0.1}, if_match=7)
        client.override("a", {"hparam": "lr", "op": "set", "value": 0.1}, if_match='"abc"')
    assert [r.headers["if-match"] for r in service.requests] == ['"7"', '"abc"']


@pytest.mark.parametrize("job_id", ["", "..", "a/b"])
def test_an_id_that_would_leave_its_path_is_refused_unsent(job_id: str) -> None:
    service = Service(answer(200, {}))
    with service.client() as client, pytest.raises(ConfigError):
        client.job(job_id)
    assert service.requests == []


@pytest.mark.parametrize("url", ["ftp://x", "localhost:8470", "", "http://"])
def test_an_address_that_is_none_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HDET_URL", url)
    if url:
        with pytest.raises(ConfigError, match="address"):
            HDETClient()
    else:
        with HDETClient() as client:
            assert client.url == "http://127.0.0.1:8470"


def test_a_token_that_was_copied_with_a_blank_is_refused() -> None:
    with pytest.raises(ConfigError, match="blank"):
        HDETClient(URL, "two words")


def test_address_and_token_come_from_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HDET_HOME", str(tmp_path))
    monkeypatch.delenv("HDET_URL", raising=False)
    (tmp_path / "cluster.json").write_text(json.dumps({"url": "http://127.0.0.1:9999"}))
    (tmp_path / "token").write_text("hdet_abc\n")
    service = Service(answer(200, {}))
    with HDETClient(transport=httpx.MockTransport(service)) as client:
        client.whoami()
    request = service.requests[0]
    assert (request.url.port, request.headers["authorization"]) == (9999, "Bearer hdet_abc")


def test_the_local_token_is_not_sent_to_another_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HDET_HOME", str(tmp_path))
    monkeypatch.setenv("HDET_URL", "http://elsewhere.test")
    (tmp_path / "cluster.json").write_text(json.dumps({"url": "http://127.0.0.1:9999"}))
    (tmp_path / "token").write_text("hdet_abc\n")
    service = Service(answer(200, {}))
    with HDETClient(transport=httpx.MockTransport(service)) as client:
        client.whoami()
    assert "authorization" not in service.requests[0].headers


def found(text: str, *jobs: dict[str, Any]) -> str:
    with Service(answer(200, {"items": list(jobs), "next": None})).client() as client:
        return client.find_job(text)["id"]


def test_a_job_is_found_by_its_name_or_a_start_of_its_id() -> None:
    one, other = job("01K9AAAA" + "0" * 18, "one"), job("01K9BBBB" + "0" * 18, "other")
    assert found("one", one, other) == one["id"]
    assert found("01k9bb", one, other) == other["id"]


def test_a_name_that_repeats_never_stands_for_one_of_them() -> None:
    same = [job("01K9AAAA" + "0" * 18, "x"), job("01K9BBBB" + "0" * 18, "x")]
    with pytest.raises(AmbiguousJob) as caught:
        found("x", *same)
    assert [match[0] for match in caught.value.matches] == [same[0]["id"], same[1]["id"]]


def test_a_name_that_is_another_jobs_prefix_is_ambiguous() -> None:
    with pytest.raises(AmbiguousJob):
        found("01K9AA", job("01K9AAAA" + "0" * 18, "x"), job("01K9BBBB" + "0" * 18, "01K9AA"))


def test_a_prefix_of_few_characters_stands_for_nothing() -> None:
    with pytest.raises(NotFound, match="6 characters"):
        found("01K9A", job("01K9AAAA" + "0" * 18, "x"))


def test_a_whole_id_is_asked_for_directly() -> None:
    service = Service(answer(200, job()))
    with service.client() as client:
        client.find_job(JOB_ID.lower())
    assert [request.url.path for request in service.requests] == [f"/v1/jobs/{JOB_ID}"]


class CutDownload(httpx.SyncByteStream):
    """Half of the weights."""

    def __iter__(self) -> Iterator[bytes]:
        yield b"half"
        raise httpx.ReadError("cut")


def cut_download() -> httpx.Response:
    return httpx.Response(200, stream=CutDownload())


def test_an_export_that_breaks_off_is_fetched_anew_and_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "model.safetensors"
    service = Service(cut_download(), problem(503), httpx.Response(200, content=b"weights"))
    with service.client() as client:
        client.export("a", target, round=3)
    assert target.read_bytes() == b"weights"
    assert list(tmp_path.iterdir()) == [target]


def test_an_export_that_never_becomes_whole_leaves_nothing(tmp_path: Path) -> None:
    service = Service(*(cut_download() for _ in range(Retries().max_attempts)))
    with service.client() as client, pytest.raises(Unreachable):
        client.export("a", tmp_path / "model.safetensors", round=3)
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_is_refused_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "model.safetensors"
    target.write_bytes(b"old")
    with Service(problem(404)).client() as client, pytest.raises(NotFound):
        client.export("a", target, round=3)
    assert target.read_bytes() == b"old"


def test_the_async_client_keeps_the_same_promises(tmp_path: Path) -> None:
    service = Service(
        httpx.ReadError("cut"),
        answer(201, job()),
        answer(200, {"items": [job("a")], "next": "c"}),
        answer(200, {"items": [job("b")], "next": None}),
        answer(200, {"sha256": "x"}),
        httpx.Response(200, content=b"weights"),
    )
    (tmp_path / "train.py").write_text("print(1)\n")

    async def run() -> list[str]:
        async def no_wait(seconds: float) -> None:
            service.waits.append(seconds)

        transport = httpx.MockTransport(service)
        async with AsyncHDETClient(URL, "secret", transport=transport, sleep=no_wait) as client:
            await client.submit(SPEC)
            names = [found["id"] async for found in client.jobs()]
            sha256 = await client.upload_package(tmp_path)
            path = await client.export("a", tmp_path / "model.safetensors", round=1)
            return [*names, sha256, path.name]

    names = asyncio.run(run())
    assert names[:2] == ["a", "b"]
    assert service.requests[4].url.path.endswith(names[2])
    assert names[3] == "model.safetensors"
    assert len({r.headers["idempotency-key"] for r in service.requests[:2]}) == 1
