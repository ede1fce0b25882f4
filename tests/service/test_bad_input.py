"""Bad input: each gets a problem document that says what to do; nothing is stored, no stack trace leaves."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import re
import stat
import threading
import zipfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from hdet_ray.config import Auto, Fixed, Paper
from hdet_ray.exceptions import ConfigError
from hdet_service import controller_settings, reading
from hdet_service.limits import RequestRates
from hdet_service.problems import PROBLEMS, TooMany, Unavailable
from hdet_service.readiness import Readiness
from hdet_service.schemas import JobSpec
from hdet_service.store.errors import StoreBusyError, StoreFullError
from tests.service.serving import OPERATOR, SPEC, SUBMITTER, Served

MIB = 1 << 20
JSON_TYPE = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("home"))
    yield served
    served.close()


def _ask(served: Served, method: str, path: str, caller: str | None = OPERATOR, **how: Any) -> httpx.Response:
    answer: httpx.Response = served.run(served.service.call(caller, method, path, **how))
    if answer.status_code >= 400:
        document = answer.json()
        assert answer.headers["content-type"] == "application/problem+json"
        assert re.fullmatch(r"urn:hdet:problem:[a-z-]+", document["type"])
        assert document["status"] == answer.status_code
        assert document["title"]
        assert document["detail"]
        assert "Traceback" not in answer.text
        assert 'File "' not in answer.text
    return answer


def _submit(served: Served, spec: Any) -> httpx.Response:
    return _ask(served, "POST", "/v1/jobs", json=spec)


def _fields(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 422, answer.text
    return [error["field"] for error in answer.json()["errors"]]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"colour": "red"}, "colour"),
        ({"replicas": {"min": 2, "max": 2, "pace": 1}}, "replicas.pace"),
        ({"replicas": {"min": "2", "max": 2}}, "replicas.min"),
        ({"replicas": {"min": 2.0, "max": 2}}, "replicas.min"),
        ({"replicas": {"min": True, "max": 1}}, "replicas.min"),
        ({"replicas": {"min": 0, "max": 0}}, "replicas.min"),
        ({"replicas": {"min": 2000, "max": 2000}}, "replicas.min"),
        ({"replicas": {"min": 3, "max": 1}}, "replicas"),
        ({"replicas": {"min": 2, "max": 2, "gpus_per_rank": 1.5}}, "replicas.gpus_per_rank"),
        ({"replicas": {"min": 2, "max": 2, "cpus_per_rank": "1"}}, "replicas.cpus_per_rank"),
        ({"replicas": None}, "replicas"),
        ({"name": ""}, "name"),
        ({"name": 7}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"entrypoint": "byte_ml"}, "entrypoint"),
        ({"entrypoint": "module:"}, "entrypoint"),
        ({"entrypoint": "python train.py\nrm -rf /"}, "entrypoint"),
        ({"config": [1]}, "config"),
        ({"config": {"x": "y" * 70_000}}, ""),
        ({"priority": "high"}, "priority"),
        ({"priority": 1e300}, "priority"),
        ({"max_failures": -1}, "max_failures"),
        ({"labels": {"team": 1}}, "labels.team"),
        ({"labels": {f"k{n}": "v" for n in range(17)}}, "labels"),
        ({"hdet": {"controller": "magic"}}, "hdet"),
        ({"hdet": {"alpha": 0.1}}, "hdet"),
        ({"hdet": {"controller": "auto", "alpha": 1.5}}, "hdet.alpha"),
        ({"hdet": {"controller": "auto", "alpha": "0.1"}}, "hdet.alpha"),
        ({"hdet": {"controller": "fixed", "sigma": 0.1}}, "hdet.sigma"),
        ({"hdet": {"controller": "paper", "gradient_sync": "both"}}, "hdet.gradient_sync"),
        ({"runtime_env": {"env_vars": {"HDET_JOB_ID": "x"}}}, "runtime_env.env_vars.HDET_JOB_ID.[key]"),
        ({"runtime_env": {"env_vars": {"RAY_ADDRESS": "x"}}}, "runtime_env.env_vars.RAY_ADDRESS.[key]"),
        ({"runtime_env": {"env_vars": {"A": 1}}}, "runtime_env.env_vars.A"),
        ({"runtime_env": {"working_dir": "../../etc"}}, "runtime_env.working_dir"),
        ({"runtime_env": {"working_dir": "file:///etc/x.zip"}}, "runtime_env.working_dir"),
        ({"runtime_env": {"working_dir": "a" * 64}}, "runtime_env.working_dir"),
        ({"runtime_env": {"pip": "numpy"}}, "runtime_env.pip"),
        ({"checkpoint": {"storage_path": "/data/../etc"}}, "checkpoint.storage_path"),
        ({"checkpoint": {"storage_path": "runs"}}, "checkpoint.storage_path"),
        ({"checkpoint": {"keep": 0}}, "checkpoint.keep"),
    ],
)
def test_what_a_spec_must_not_say_is_refused_by_its_field(
    served: Served, change: dict[str, Any], field: str
) -> None:
    assert field in _fields(_submit(served, {**SPEC, **change}))


def test_a_range_of_replicas_the_wrong_way_round_is_refused_with_the_remedy(served: Served) -> None:
    answer = _submit(served, {**SPEC, "replicas": {"min": 3, "max": 1}})
    assert "min=3 is above max=1; swap them" in answer.json()["errors"][0]["message"]


def test_replicas_may_change_between_a_minimum_and_a_maximum(served: Served) -> None:
    assert _submit(served, {**SPEC, "replicas": {"min": 1, "max": 3}}).status_code == 201


@pytest.mark.parametrize("missing", ["name", "entrypoint", "replicas"])
def test_a_missing_field_is_named(served: Served, missing: str) -> None:
    assert _fields(_submit(served, {k: v for k, v in SPEC.items() if k != missing})) == [missing]


@pytest.mark.parametrize("body", [b"[]", b'"x"', b"1", b"null", b"true"])
def test_a_body_that_is_no_object_is_refused(served: Served, body: bytes) -> None:
    assert _ask(served, "POST", "/v1/jobs", content=body, headers=JSON_TYPE).status_code == 422


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"name": NaN}',
        b'{"name": Infinity}',
        b'{"name": -Infinity}',
        b'{"priority": 1e999}',
        b'{"name": "a", "name": "b"}',
        b'{"config": {"x": 1, "x": 2}}',
        b'{"name": "\xff\xfe"}',
        b'{"name": "\\ud800"}',
        b'{"name": ' + b"9" * 5000 + b"}",
        b'{"config": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        b'{"config": ' + b'{"a":' * 100 + b"1" + b"}" * 100 + b"}",
        b"\xef\xbb\xbf{}",
    ],
    ids=[
        "empty",
        "cut",
        "nan",
        "infinity",
        "minus-infinity",
        "overflow",
        "twice",
        "twice-inside",
        "not-utf8",
        "surrogate",
        "long-number",
        "deep-list",
        "deep-object",
        "bom",
    ],
)
def test_what_is_no_plain_json_is_refused(served: Served, body: bytes) -> None:
    answer = _ask(served, "POST", "/v1/jobs", content=body, headers=JSON_TYPE)
    assert answer.status_code == 400


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "application/json; charset=utf-16"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    ],
)
def test_another_content_type_is_refused_by_name(served: Served, headers: dict[str, str]) -> None:
    body = json.dumps(SPEC).encode()
    assert _ask(served, "POST", "/v1/jobs", content=body, headers=headers).status_code == 415


def test_a_body_above_the_cap_is_refused_before_it_was_read(served: Served) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(10):
            sent += MIB
            yield b" " * MIB

    answer = _ask(served, "POST", "/v1/jobs", content=endless(), headers=JSON_TYPE)
    assert answer.status_code == 413
    assert answer.json()["max_bytes"] == MIB
    assert sent <= 2 * MIB

    announced = _ask(
        served, "POST", "/v1/jobs", content=b"{}", headers={**JSON_TYPE, "Content-Length": str(10 * MIB)}
    )
    assert announced.status_code == 413


def test_a_body_that_does_not_arrive_is_given_up(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "BODY_TIMEOUT_S", 0.02)

    async def stalled() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    assert _ask(served, "POST", "/v1/jobs", content=stalled(), headers=JSON_TYPE).status_code == 408


def test_a_stranger_is_refused_before_the_body_was_read(served: Served) -> None:
    async def untouched() -> AsyncIterator[bytes]:
        raise AssertionError("the body of a stranger was read")
        yield b""

    path, how = "/v1/jobs", {"content": untouched(), "headers": JSON_TYPE}
    request = served.service.call(None, "POST", path, **how)
    assert served.run(request).status_code == 401


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/jobs?colour=red", "colour"),
        ("/v1/jobs?limit=0", "limit"),
        ("/v1/jobs?limit=1.0", "limit"),
        ("/v1/jobs?limit=-1", "limit"),
        ("/v1/jobs?limit=%20" + "5", "limit"),
        ("/v1/jobs?limit=100000", "limit"),
        ("/v1/jobs?limit=1&limit=2", "limit"),
        ("/v1/jobs?state=running", "state.0"),
        ("/v1/jobs?label=team", "label.0"),
        ("/v1/tokens?name=x", "name"),
    ],
)
def test_a_parameter_that_is_not_known_or_not_valid_is_named(served: Served, path: str, field: str) -> None:
    assert _fields(_ask(served, "GET", path)) == [field]


@pytest.mark.parametrize("flag", ["1", "yes", "True", "null", ""])
def test_a_flag_is_true_or_false(served: Served, flag: str) -> None:
    assert _fields(_ask(served, "POST", f"/v1/jobs?dry_run={flag}", json=SPEC)) == ["dry_run"]


def test_a_cursor_that_is_not_ours_or_of_another_list_is_refused(served: Served) -> None:
    for _ in range(3):
        _submit(served, SPEC)
    cursor = _ask(served, "GET", "/v1/jobs?limit=1").json()["next"]
    assert _ask(served, "GET", "/v1/jobs", params={"limit": 1, "cursor": cursor}).status_code == 200
    swapped = "A" if cursor[5] != "A" else "B"
    changed = cursor[:5] + swapped + cursor[6:]
    for path, bad in (
        ("/v1/jobs", "x"),
        ("/v1/jobs", "ä"),
        ("/v1/jobs", changed),
        ("/v1/jobs?state=QUEUED", cursor),
        ("/v1/audit", cursor),
        ("/v1/jobs", "a" * 1000),
    ):
        answer = _ask(served, "GET", path + ("&" if "?" in path else "?") + f"cursor={bad}")
        assert answer.json()["type"] == "urn:hdet:problem:bad-cursor"
        assert answer.status_code == 400


def test_pages_follow_each_other_without_gap_or_repetition(served: Served) -> None:
    for number in range(7):
        _submit(served, {**SPEC, "labels": {"page": "test"}, "name": f"p{number}"})
    names: list[str] = []
    cursor: str | None = None
    while True:
        params = {"limit": 3, "label": "page=test", **({"cursor": cursor} if cursor else {})}
        page = _ask(served, "GET", "/v1/jobs", params=params).json()
        names += [job["name"] for job in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
        _submit(served, {**SPEC, "labels": {"page": "test"}, "name": "later"})  # what comes is not doubled
    assert names == [f"p{number}" for number in reversed(range(7))]


def test_an_unknown_path_and_an_unknown_method_are_problems_too(served: Served) -> None:
    assert _ask(served, "GET", "/v2/jobs").status_code == 404
    assert _ask(served, "GET", "/v1/jobs/").status_code == 404
    answer = _ask(served, "PUT", "/v1/jobs")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET, POST"


@pytest.mark.parametrize("accept", ["text/html", "application/xml"])
def test_a_form_that_is_not_offered_is_refused(served: Served, accept: str) -> None:
    job_id = _submit(served, SPEC).json()["id"]
    assert _ask(served, "GET", f"/v1/jobs/{job_id}/events", headers={"Accept": accept}).status_code == 406


@pytest.mark.parametrize(
    "authorization", ["", "Bearer", "Bearer ", "Basic eDp5", "bearer", "Bearer x y", "Bearer \xff"]
)
def test_an_authorization_that_is_none_is_refused(served: Served, authorization: str) -> None:
    headers = {"Authorization": authorization.encode("latin-1")}
    answer = _ask(served, "GET", "/v1/whoami", None, headers=headers)
    assert answer.status_code == 401


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "ä".encode()])
def test_an_idempotency_key_that_is_none_is_named(served: Served, key: str | bytes) -> None:
    headers = {"Idempotency-Key": key}
    assert _fields(_ask(served, "POST", "/v1/jobs", json=SPEC, headers=headers)) == ["Idempotency-Key"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"hparam": "lr", "op": "scale", "value": 0}, "value"),
        ({"hparam": "lr", "op": "scale", "value": "0.5"}, "value"),
        ({"hparam": "lr", "op": "double", "value": 2}, ""),
        ({"hparam": "lr", "op": "set", "value": 1e9}, "value"),
        ({"hparam": "momentum", "op": "set", "value": 0.5}, "hparam"),
        ({"hparam": "lr", "op": "scale", "value": 0.5, "group": 7}, "group"),
        ({"hparam": "lr", "op": "scale", "value": 0.5, "group": -1}, "group"),
        ({"hparam": "lr", "op": "scale", "value": 0.5, "expires_after_rounds": 0}, "expires_after_rounds"),
        ({"hparam": "lr", "op": "scale", "value": 0.5, "apply_at_round": 1.0}, "apply_at_round"),
    ],
)
def test_an_override_that_can_not_apply_is_refused_by_its_field(
    served: Served, body: dict[str, Any], field: str
) -> None:
    job_id = served.run(served.service.submit_open())
    path = f"/v1/jobs/{job_id}/schedule/overrides"
    answer = _ask(served, "POST", path, json=body, headers={"If-Match": '"0"'})
    assert field in _fields(answer)
    schedule = _ask(served, "GET", f"/v1/jobs/{job_id}/schedule")
    assert schedule.headers["etag"] == '"0"'
    assert schedule.json()["overrides"] == []


@pytest.mark.parametrize("body", [{"hparam": "lr"}, {"hparam": "lr", "bounds": [1, 1]}, {"frozen": True}])
def test_a_steering_that_says_nothing_or_nonsense_is_refused(served: Served, body: dict[str, Any]) -> None:
    job_id = served.run(served.service.submit_open())
    assert _ask(served, "PATCH", f"/v1/jobs/{job_id}/schedule/auto", json=body).status_code == 422


@pytest.mark.parametrize("round", ["x", "-1", "1.5", "99999999999", "%2e%2e"])
def test_a_round_in_the_path_is_a_whole_number(served: Served, round: str) -> None:
    job_id = _submit(served, SPEC).json()["id"]
    answer = _ask(served, "GET", f"/v1/jobs/{job_id}/checkpoints/{round}/export")
    assert answer.status_code in (404, 422)


# ---- packages


def _zip(**entries: bytes) -> bytes:
    return _zipped([(zipfile.ZipInfo(name.replace("__", "/")), data) for name, data in entries.items()])


def _zipped(entries: list[tuple[zipfile.ZipInfo, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for info, data in entries:
            archive.writestr(info, data, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _put(served: Served, data: bytes, sha256: str | None = None, **headers: str) -> httpx.Response:
    name = sha256 or hashlib.sha256(data).hexdigest()
    how = {"content": data, "headers": {"Content-Type": "application/zip", **headers}}
    return _ask(served, "PUT", f"/v1/packages/{name}", SUBMITTER, **how)


def _files(served: Served) -> list[str]:
    return sorted(path.name for path in served.service.controller.settings.packages_path.iterdir())


def test_a_package_is_kept_once_under_its_own_hash(served: Served) -> None:
    data = _zip(**{"train.py": b"print(1)", "lib__x.py": b""})
    assert _put(served, data).status_code == 201
    assert _put(served, data).status_code == 200
    sha256 = hashlib.sha256(data).hexdigest()
    path = served.service.controller.settings.packages_path / f"{sha256}.zip"
    assert path.read_bytes() == data
    spec = {**SPEC, "runtime_env": {"working_dir": sha256}}
    assert _submit(served, spec).status_code == 201


def test_a_package_whose_hash_lies_is_refused_and_leaves_nothing(served: Served) -> None:
    before = _files(served)
    assert _fields(_put(served, _zip(**{"a.py": b"1"}), "0" * 64)) == ["sha256"]
    assert _files(served) == before


def _link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


def _bomb() -> bytes:
    return _zipped([(zipfile.ZipInfo("zeros"), b"\0" * (80 * MIB))])


@pytest.mark.parametrize(
    "make",
    [
        lambda: b"not a zip",
        lambda: b"",
        lambda: b"PK\x05\x06" + b"\0" * 10,
        lambda: _zipped([(zipfile.ZipInfo("../evil.py"), b"1")]),
        lambda: _zipped([(zipfile.ZipInfo("a/../../evil.py"), b"1")]),
        lambda: _zipped([(zipfile.ZipInfo("/etc/passwd"), b"1")]),
        lambda: _zipped([(zipfile.ZipInfo("C:\\evil.py"), b"1")]),
        lambda: _zipped([(_link("link"), b"/etc/passwd")]),
        _bomb,
        lambda: _zip(**{"a.py": b"1"})[:-10],
    ],
    ids=[
        "text",
        "empty",
        "torn-end",
        "climbs",
        "climbs-inside",
        "absolute",
        "windows",
        "link",
        "bomb",
        "cut",
    ],
)
def test_a_zip_that_must_not_be_unpacked_is_refused_and_leaves_nothing(served: Served, make: Any) -> None:
    before = _files(served)
    answer = _put(served, make())
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["message"]
    assert _files(served) == before


def test_a_package_above_the_cap_is_cut_off(tmp_path: Path) -> None:
    served = Served(tmp_path, max_package_bytes=100_000)
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(100):
            sent += 50_000
            yield b"x" * 50_000

    how = {"content": endless(), "headers": {"Content-Type": "application/zip"}}
    try:
        assert _ask(served, "PUT", "/v1/packages/" + "0" * 64, **how).status_code == 413
        assert sent <= 200_000
        assert _files(served) == []
    finally:
        served.close()


def test_a_package_needs_its_content_type_and_a_hash_as_name(served: Served) -> None:
    data = _zip(**{"a.py": b"1"})
    assert _put(served, data, **{"Content-Type": "application/json"}).status_code == 415
    assert _put(served, data, "A" * 64).status_code == 422
    assert _put(served, data, "0" * 63).status_code == 422


# ---- the service's own faults


@pytest.mark.parametrize(
    ("error", "reason"), [(StoreFullError("full"), "disk-full"), (StoreBusyError("busy"), "database-busy")]
)
def test_a_store_that_can_not_write_now_is_503_and_says_when_to_come_again(
    served: Served, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    async def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(served.service.controller.jobs, "submit", fail)
    answer = _submit(served, SPEC)
    assert answer.status_code == 503
    assert answer.json()["reason"] == reason
    assert int(answer.headers["retry-after"]) >= 1


def test_an_error_that_nobody_foresaw_is_500_with_an_id_that_the_log_has_too(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(served.service.controller.jobs, "list", fail)
    answer = _ask(served, "GET", "/v1/jobs")
    assert answer.status_code == 500
    assert "secret detail" not in answer.text
    assert answer.json()["error_id"] in caplog.text
    assert "secret detail" in caplog.text


def test_more_requests_than_the_rate_are_429_with_a_time_and_only_for_that_token(tmp_path: Path) -> None:
    served = Served(tmp_path, requests_per_s=0.01, request_burst=3)
    try:
        statuses = [_ask(served, "GET", "/v1/whoami").status_code for _ in range(5)]
        assert statuses == [200, 200, 200, 429, 429]
        assert int(_ask(served, "GET", "/v1/whoami").headers["retry-after"]) >= 1
        assert _ask(served, "GET", "/v1/whoami", SUBMITTER).status_code == 200
        strangers = [_ask(served, "GET", "/v1/whoami", None).status_code for _ in range(5)]
        assert strangers == [401, 401, 401, 429, 429]
        assert _ask(served, "GET", "/healthz", None).status_code == 200
    finally:
        served.close()


def test_a_bucket_fills_again_and_a_clock_that_steps_back_takes_nothing() -> None:
    now = 100.0
    rates = RequestRates(per_s=2.0, burst=2, clock=lambda: now)
    rates.take("a")
    rates.take("a")
    with pytest.raises(TooMany, match="requests per second"):
        rates.take("a")
    now = 50.0
    with pytest.raises(TooMany, match="requests per second"):
        rates.take("a")
    now = 50.5
    rates.take("a")


def test_requests_are_counted_by_route_and_never_by_path(served: Served) -> None:
    job_id = _submit(served, SPEC).json()["id"]
    _ask(served, "GET", f"/v1/jobs/{job_id}")
    _ask(served, "GET", "/v1/no-such-thing")
    metrics = _ask(served, "GET", "/metrics").text
    assert 'hdet_http_requests_total{method="GET",route="/v1/jobs/{job_id}",status="200"}' in metrics
    assert 'hdet_http_requests_total{method="GET",route="unmatched",status="404"}' in metrics
    assert "no-such-thing" not in metrics


def test_answers_carry_headers_that_keep_browsers_careful(served: Served) -> None:
    headers = _ask(served, "GET", "/v1/whoami").headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["cache-control"] == "no-store"
    assert "default-src 'none'" in headers["content-security-policy"]


# ---- what stands twice agrees


@pytest.mark.parametrize(("tag", "kind"), [("auto", Auto), ("paper", Paper), ("fixed", Fixed)])
def test_a_controllers_settings_have_the_librarys_names_and_defaults(tag: str, kind: type[Any]) -> None:
    spec = JobSpec.model_validate({**SPEC, "hdet": {"controller": tag}})
    assert spec.controller() == kind()
    schema = JobSpec.model_json_schema()["$defs"][f"{kind.__name__}Settings"]["properties"]
    assert set(schema) == {"controller", *kind.__dataclass_fields__}


@pytest.mark.parametrize(("tag", "kind"), [("auto", Auto), ("paper", Paper), ("fixed", Fixed)])
def test_the_bounds_in_the_schema_are_those_of_the_library(tag: str, kind: type[Any]) -> None:
    for name in kind.__dataclass_fields__:
        for rule, bound in controller_settings.BOUNDS.get(name, {}).items():
            step = 1 if isinstance(bound, int) and name.endswith(("steps", "every", "samples", "s")) else 1e-9
            outside = {"ge": bound - step, "gt": bound, "le": None, "lt": bound}[rule]
            if outside is None:
                continue
            with pytest.raises(ConfigError, match=name):
                kind(**{name: outside})
        inside = controller_settings.BOUNDS.get(name, {}).get("ge")
        if inside is not None:
            kind(**{name: inside})


def test_problems_have_types_of_their_own() -> None:
    slugs = [problem.slug for problem in PROBLEMS]
    assert len(set(slugs)) == len(slugs)
    assert all(re.fullmatch(r"[a-z-]+", slug) for slug in slugs)


def test_many_probes_ask_ray_once_and_a_silent_ray_holds_one_thread(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hdet_service.readiness.WITHIN_S", 0.05)
    asked = 0
    answers = threading.Event()

    class SilentRay:
        def is_ready(self) -> bool:
            nonlocal asked
            asked += 1
            return answers.wait(10)

    now = 0.0
    readiness = Readiness(served.service.controller.store, SilentRay(), clock=lambda: now)

    async def probe() -> list[Any]:
        return await asyncio.gather(*(readiness.check() for _ in range(20)), return_exceptions=True)

    async def probes() -> list[list[Any]]:
        nonlocal now
        silent = await probe()
        now += 2.0
        still_silent = await probe()
        assert asked == 1
        answers.set()
        now += 2.0
        return [silent, still_silent, await probe()]

    silent, still_silent, ready = served.run(probes())
    assert all(isinstance(one, Unavailable) for one in (*silent, *still_silent))
    assert ready == [None] * 20


def test_a_service_without_ray_is_not_ready(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served.service.starter, "is_ready", lambda: False)
    served.service.app.state.readiness = Readiness(served.service.controller.store, served.service.starter)
    answer = _ask(served, "GET", "/readyz", None)
    assert answer.status_code == 503
    assert answer.json()["reason"] == "ray"
    assert _ask(served, "GET", "/healthz", None).status_code == 200
