"""The console over real HTTP: who sees what, what stands on the pages, and that nothing there is trusted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest

from hdet_ray.config import Auto, Controller, Fixed, Paper
from hdet_ray.core.state import ScheduleState
from hdet_service.console.charts import charts_of
from hdet_service.console.record import RunRecord, RunRecords
from hdet_service.console.sentences import sentence
from hdet_service.console.svg import Axis, number_text
from hdet_service.sessions import COOKIE
from hdet_service.store.database import Store
from hdet_service.store.models import Job
from tests.service.recorded_runs import RecordedRun
from tests.service.served import PlayedRun, Served, served

EVIL = '<script>alert("x")</script>'
FAN = Fixed(alpha=1 / 9, sync_every=10)


class Tags(HTMLParser):
    """Every tag with its attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def named(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.found if tag == name]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("console")
    with served(folder, requests_per_s=1e6, request_burst=10**6, max_running_jobs=1000) as service:
        yield service


def browser(service: Served) -> httpx.Client:
    """Nobody is logged in; redirects are not followed."""
    return httpx.Client(base_url=service.url, timeout=30)


def token_of(service: Served, name: str, role: str) -> str:
    headers = {"Authorization": f"Bearer {service.token}"}
    answer = httpx.post(f"{service.url}/v1/tokens", json={"name": name, "role": role}, headers=headers)
    answer.raise_for_status()
    return str(answer.json()["token"])


@contextmanager
def logged_in(service: Served, token: str | None = None) -> Iterator[httpx.Client]:
    with browser(service) as client:
        answer = client.post("/login", data={"token": token or service.token})
        assert answer.status_code == 303, answer.text
        yield client


def submit(service: Served, token: str | None = None, **spec: object) -> str:
    body = {"name": "tiny", "entrypoint": "byte_lm", "replicas": {"min": 3, "max": 3}, **spec}
    headers = {"Authorization": f"Bearer {token or service.token}"}
    answer = httpx.post(f"{service.url}/v1/jobs", json=body, headers=headers)
    assert answer.status_code == 201, answer.text
    job_id = str(answer.json()["id"])
    service.run(service.controller.tick())
    return job_id


@pytest.fixture(scope="module")
def job_id(service: Served) -> str:
    """A job that has searched and trains."""
    job_id = submit(service)
    PlayedRun(service, job_id).advance(7)
    return job_id


# ---------------------------------------------------------------------- who sees what


def test_without_a_session_there_is_the_login_and_nothing_else(service: Served, job_id: str) -> None:
    with browser(service) as client:
        for path in ("/", f"/jobs/{job_id}", "/jobs/absent"):
            page = client.get(path)
            assert page.status_code == 200
            assert 'name="token"' in page.text
            assert "tiny" not in page.text
        for path in ("/live", f"/jobs/{job_id}/live"):
            assert client.get(path).status_code == 401


def test_a_token_becomes_a_cookie_that_no_script_and_no_other_site_gets(service: Served) -> None:
    with browser(service) as client:
        answer = client.post("/login", data={"token": f"  {service.token}\n"})
        cookie = answer.headers["set-cookie"]
        assert answer.status_code == 303
        assert {"HttpOnly", "SameSite=strict", "Path=/"} <= {part.strip() for part in cookie.split(";")}
        assert service.token not in cookie
        assert "operator" in client.get("/").text


def test_the_login_leads_back_to_the_job_that_was_asked_for_and_never_elsewhere(
    service: Served, job_id: str
) -> None:
    with browser(service) as client:
        wanted = Tags(client.get(f"/jobs/{job_id}").text).named("input")
        assert {"type": "hidden", "name": "next", "value": f"/jobs/{job_id}"} in wanted
        for asked, led in (
            (f"/jobs/{job_id}", f"/jobs/{job_id}"),
            ("https://evil.test/", "/"),
            ("//evil.test/jobs/x", "/"),
            ("/jobs/../../docs", "/"),
        ):
            answer = client.post("/login", data={"token": service.token, "next": asked})
            assert answer.headers["location"] == led


@pytest.mark.parametrize("token", ["wrong", "", "é" * 40])
def test_a_wrong_token_is_refused_on_the_page(service: Served, token: str) -> None:
    with browser(service) as client:
        answer = client.post("/login", data={"token": token})
        assert answer.status_code == 401
        assert COOKIE not in answer.cookies
        assert "unknown or was revoked" in answer.text


def test_a_token_for_metrics_sees_no_page(service: Served) -> None:
    with browser(service) as client:
        answer = client.post("/login", data={"token": token_of(service, "prometheus", "metrics")})
        assert answer.status_code == 403
        assert COOKIE not in answer.cookies


def test_a_submitter_sees_its_own_jobs_and_another_ones_like_one_that_is_not_there(
    service: Served, job_id: str
) -> None:
    token = token_of(service, "sam", "submitter")
    own = submit(service, token, name="mine-alone")
    with logged_in(service, token) as client:
        page = client.get("/").text
        assert "mine-alone" in page
        assert job_id not in page
        assert client.get(f"/jobs/{own}").status_code == 200
        others, absent = client.get(f"/jobs/{job_id}"), client.get(f"/jobs/{job_id[:-1]}X")
        assert others.status_code == absent.status_code == 404
        assert others.text.replace(job_id, "") == absent.text.replace(f"{job_id[:-1]}X", "")
        assert client.get(f"/jobs/{job_id}/live").status_code == 404


def test_a_revoked_token_ends_its_session(service: Served) -> None:
    token = token_of(service, "vera", "viewer")
    with logged_in(service, token) as client:
        assert "Log out" in client.get("/").text
        headers = {"Authorization": f"Bearer {service.token}"}
        httpx.delete(f"{service.url}/v1/tokens/vera", headers=headers).raise_for_status()
        assert "Log out" not in client.get("/").text


def test_logging_out_needs_the_pages_own_form(service: Served) -> None:
    with logged_in(service) as client:
        assert client.post("/logout", data={"csrf": "guessed"}).status_code == 403
        assert "Log out" in client.get("/").text
        forms = [f for f in Tags(client.get("/").text).named("input") if f["name"] == "csrf"]
        answer = client.post("/logout", data={"csrf": forms[0]["value"]})
        assert answer.status_code == 303
        assert "Log out" not in client.get("/").text


@pytest.mark.parametrize(
    "headers", [{"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.test"}, {"Origin": "null"}]
)
def test_a_form_of_another_site_is_refused(service: Served, headers: dict[str, str]) -> None:
    with browser(service) as client:
        answer = client.post("/login", data={"token": service.token}, headers=headers)
        assert answer.status_code == 403
        assert COOKIE not in answer.cookies


def test_a_form_larger_than_ours_is_not_read(service: Served) -> None:
    with browser(service) as client:
        assert client.post("/login", data={"token": "x" * 10_000}).status_code == 413


# ---------------------------------------------------------------------- what is on the pages


def test_nothing_on_a_page_changes_anything_but_the_login(service: Served, job_id: str) -> None:
    with logged_in(service) as client:
        for path in ("/", f"/jobs/{job_id}"):
            forms = Tags(client.get(path).text).named("form")
            assert [form["action"] for form in forms] == ["/logout"]


def test_a_page_fetches_nothing_from_elsewhere_and_runs_nothing_but_its_own_script(
    service: Served, job_id: str
) -> None:
    with logged_in(service) as client:
        for path in ("/", f"/jobs/{job_id}"):
            page = client.get(path)
            policy = page.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert "http" not in policy
            tags = Tags(page.text).found
            addresses = [a[n] for _, a in tags for n in ("src", "href", "action") if a.get(n)]
            assert all(address.startswith(("/", "#")) for address in addresses if address)
            assert not any("style" in a or any(n.startswith("on") for n in a) for _, a in tags)
            assert all(a.get("src") for tag, a in tags if tag == "script")
            for address in {a["src"] for tag, a in tags if tag == "script"}:
                assert client.get(str(address)).status_code == 200


def test_files_are_served_for_good_under_an_address_that_changes_with_them(service: Served) -> None:
    with browser(service) as client:
        page = client.get("/").text
        address = re.search(r'href="(/static/console\.css\?[0-9a-f]{12})"', page)
        assert address
        style = client.get(address[1])
        assert style.headers["content-type"].startswith("text/css")
        assert "immutable" in style.headers["cache-control"]
        assert client.get("/static/../routes.py").status_code == 404
        assert client.get("/static/routes.py").status_code == 404
        assert client.get("/favicon.ico").headers["content-type"] == "image/svg+xml"


def test_whatever_a_job_is_called_shows_as_text(service: Served) -> None:
    evil = submit(service)
    # No call takes such a name; the page does not count on that.
    service.controller.store.write_sync(lambda s: setattr(s.get_one(Job, evil), "name", EVIL))
    with logged_in(service) as client:
        for path in ("/", f"/jobs/{evil}"):
            page = client.get(path).text
            assert EVIL not in page
            assert "&lt;script&gt;alert(" in page
            assert len(Tags(page).named("script")) == 1


def test_the_list_shows_state_progress_and_replicas_newest_first(service: Served, job_id: str) -> None:
    newer = submit(service, name="newer")
    with logged_in(service) as client:
        page = client.get("/?show=active").text
        assert page.index(newer) < page.index(job_id)
        row = page[page.index(job_id) : page.index(job_id) + 1500]
        assert "RUNNING" in row
        assert "of 900 steps" in row
        assert "3<span" in row
        assert newer not in client.get("/?show=failed").text
        assert client.get("/?show=no-such-filter").status_code == 200
        assert job_id in client.get(f"/?before={newer}").text
        assert newer not in client.get(f"/?before={newer}").text


def test_a_jobs_page_shows_where_it_stands_and_what_its_search_found(service: Served, job_id: str) -> None:
    with logged_in(service) as client:
        page = client.get(f"/jobs/{job_id}").text
    for text in ("RUNNING", "3 of 3", "peak found", "left", "Learning rate", "What the search tried"):
        assert text in page
    names = [figure["id"] for figure in Tags(page).named("figure")]
    assert names == ["chart-rates", "chart-search", "chart-candidates", "chart-losses", "chart-spread"]
    assert "found 0.03" in page
    assert page.count("healthy") >= 3
    assert "Attempt 1 began at round 0 with 3 replicas" in page


def test_overrides_stand_on_the_page_with_their_state_and_reason(service: Served) -> None:
    job_id = submit(service, name="steered")
    run = PlayedRun(service, job_id, controller=FAN)
    run.advance(2)
    headers = {"Authorization": f"Bearer {service.token}", "If-Match": "*"}
    body = {"hparam": "lr", "op": "scale", "value": 0.5, "reason": f"too high {EVIL}"}
    answer = httpx.post(f"{service.url}/v1/jobs/{job_id}/schedule/overrides", json=body, headers=headers)
    assert answer.status_code == 202, answer.text
    with logged_in(service) as client:
        page = client.get(f"/jobs/{job_id}").text
        assert "lr × 0.500" in page
        assert ">pending<" in page
        assert "too high &lt;script&gt;" in page
        run.advance(2)
        assert ">applied<" in client.get(f"/jobs/{job_id}").text


def test_a_job_without_a_round_says_so(service: Served) -> None:
    job_id = submit(service, name="fresh")
    with logged_in(service) as client:
        page = client.get(f"/jobs/{job_id}")
        assert page.status_code == 200
        assert "No round has ended yet" in page.text


def test_the_stream_says_at_once_where_things_stand_and_again_when_they_change(service: Served) -> None:
    job_id = submit(service, name="followed")
    run = PlayedRun(service, job_id, controller=FAN)
    with logged_in(service) as client, client.stream("GET", f"/jobs/{job_id}/live") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        versions = (
            line.removeprefix("data: ")
            for line in stream.iter_lines()
            if line.startswith("data: ") and line[6:]
        )
        first = next(versions)
        run.advance(1)
        second = next(versions)
    with logged_in(service) as client:
        shown = Tags(client.get(f"/jobs/{job_id}").text)
        assert first != second
        assert any(a.get("data-version") == second for a in shown.named("span"))


# ---------------------------------------------------------------------- charts


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.open(tmp_path / "hdet.sqlite3")
    yield store
    store.close()


def record_of(store: Store, records: RunRecords, job_id: str) -> RunRecord:
    record = store.read_sync(lambda s: records.read(s, s.get_one(Job, job_id)))
    assert record is not None
    return record


@pytest.mark.parametrize(
    ("controller", "names"),
    [
        (Auto(), ["rates", "search", "candidates", "losses", "spread"]),
        (Auto(alpha=1 / 9), ["rates", "search", "candidates", "fan", "losses", "spread", "divergence"]),
        (FAN, ["rates", "fan", "losses", "spread", "divergence"]),
        (Paper(sync_every=50, warmup_steps=100), ["rates", "fan", "losses", "spread", "divergence"]),
        (Fixed(alpha=0.0, sync_every=50), ["rates", "losses", "spread"]),
    ],
)
def test_a_run_has_the_charts_that_it_has_something_to_say_in(
    store: Store, controller: Controller, names: list[str]
) -> None:
    RecordedRun(store, "a", controller=controller).advance(12)
    charts = charts_of(record_of(store, RunRecords(), "a"))
    assert [chart.name for chart in charts] == names
    for chart in charts:
        assert "nan" not in chart.plot.lower()
        assert chart.hover is not None
        assert len(chart.hover.xs) == len(chart.hover.titles)
        assert all(len(texts) == len(chart.hover.xs) for _, _, texts in chart.hover.rows)


def test_one_replica_alone_has_its_charts_too(store: Store) -> None:
    RecordedRun(store, "a", num_replicas=1).advance(3)
    assert [c.name for c in charts_of(record_of(store, RunRecords(), "a"))] == ["rates", "losses"]


def test_a_round_is_read_once_however_often_a_page_is_looked_at(store: Store) -> None:
    run, records = RecordedRun(store, "a", controller=FAN), RunRecords()
    run.advance(20)
    record_of(store, records, "a")
    before = records.lines_read
    record_of(store, records, "a")
    assert records.lines_read == before + 1  # the newest, for the table of replicas
    run.advance(2)
    newer = record_of(store, records, "a")
    assert records.lines_read <= before + 1 + 3
    assert [r.round for r in newer.rounds] == list(range(22))


def test_of_a_long_run_a_bounded_number_of_rounds_is_shown_and_the_newest_among_them(store: Store) -> None:
    RecordedRun(store, "a", controller=FAN).advance(57)
    record = record_of(store, RunRecords(max_rounds=40), "a")
    assert record.stride == 2
    assert [r.round for r in record.rounds] == [*range(16), *range(16, 57, 2)]
    assert "Every 2nd round is shown." in charts_of(record)[0].note
    assert record_of(store, RunRecords(max_rounds=10), "a").rounds[-1].round == 56


def test_many_replicas_become_bands_and_a_bounded_table(store: Store) -> None:
    RecordedRun(store, "a", controller=FAN, num_replicas=64).advance(30)
    charts = {c.name: c for c in charts_of(record_of(store, RunRecords(), "a"))}
    assert charts["losses"].plot.count("<path") < 20
    assert {label for _, label in charts["losses"].legend} == {"all replicas", "middle half", "median"}


def test_after_a_restart_the_abandoned_rounds_are_not_shown(store: Store) -> None:
    run, records = RecordedRun(store, "a", controller=FAN), RunRecords()
    run.advance(6)
    record_of(store, records, "a")
    run.restart(3)
    assert [r.round for r in record_of(store, records, "a").rounds] == [0, 1, 2]
    run.advance(1)
    record = record_of(store, records, "a")
    assert [r.round for r in record.rounds] == [0, 1, 2, 3]
    assert record.newest is not None
    assert record.newest.round == 3


def test_where_a_run_began_anew_its_charts_say_with_how_many_and_after_how_long(store: Store) -> None:
    run = RecordedRun(store, "a", controller=FAN)
    run.advance(6)
    run.restart(4, num_replicas=3)
    run.now += 25.0
    run.advance(2)
    record = record_of(store, RunRecords(), "a")
    (mark,) = record.marks
    assert mark.step == record.rounds[4].step
    assert mark.text.startswith("+2"), "seconds"
    assert mark.text.endswith("s, 4 → 3")
    for chart in charts_of(record):
        if chart.name in ("rates", "losses"):
            assert chart.plot.count('class="rule restart"') == 1
            assert "4 → 3" in chart.plot


def test_a_run_of_a_newer_release_has_no_charts_and_a_page_all_the_same(store: Store) -> None:
    run = RecordedRun(store, "a")
    run.set_job(schedule={"version": 99, "state": {}})
    assert store.read_sync(lambda s: RunRecords().read(s, s.get_one(Job, "a"))) is None


def test_the_search_chart_names_what_was_given_and_what_was_found(store: Store) -> None:
    run = RecordedRun(store, "a")
    run.advance(8)
    chart = next(c for c in charts_of(record_of(store, RunRecords(), "a")) if c.name == "search")
    state: ScheduleState = run.state
    assert state.search is not None
    assert state.search.result is not None
    assert "given 1.00e-03" in chart.plot
    assert "found 0.03" in chart.plot
    assert len(chart.hover.xs if chart.hover else ()) == len({p.c for p in state.search.points})


@pytest.mark.parametrize(
    ("axis", "ticks"),
    [
        (Axis(low=0, high=10), [0, 2, 4, 6, 8, 10]),
        (Axis(low=0.93, high=1.07), [0.95, 1.0, 1.05]),
        (Axis(low=2e-5, high=0.3, is_log=True), [1e-4, 1e-3, 1e-2, 1e-1]),
        (Axis(low=0.9, high=6, is_log=True), [1, 2, 5]),
    ],
)
def test_ticks_are_round_numbers_on_the_axis(axis: Axis, ticks: list[float]) -> None:
    assert axis.ticks(5) == pytest.approx(ticks)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.01, "0.01"), (2e-5, "2e-5"), (1500, "1,500"), (25_000, "25k"), (2e7, "20M")],
)
def test_ticks_are_short(value: float, text: str) -> None:
    assert number_text(value) == text


@pytest.mark.parametrize(
    ("type", "data", "text"),
    [
        (
            "state",
            {"state": "QUEUED", "reason": "WaitingForSlot", "message": "8 run"},
            "QUEUED: Waiting for slot. 8 run",
        ),
        (
            "quarantine",
            {"round": 4, "replica": 2, "reason": "nonfinite"},
            "Replica 2 was left out of round 4: nonfinite",
        ),
        (
            "override",
            {"id": "01HZZZZZZZABCDEF", "state": "applied", "applied_round": 7},
            "Override ABCDEF is in force since round 7",
        ),
        (
            "recovery",
            {"attempt": 2, "round": 12, "step": 480, "seconds": 14.2, "replicas": 2},
            "Training again after 14 s with 2 replicas, from round 12",
        ),
        ("resize", {"round": 12, "from": 3, "to": 2}, "From 3 to 2 replicas at round 12"),
        ("ledger", {"attempt": 3, "starts_at_round": 7}, "The ledger starts anew at round 7"),
        (
            "ledger",
            {"thinned": True, "from_round": 0, "starts_at_round": 125},
            "Rounds before 125 are summaries now",
        ),
        (
            "ledger",
            {"thinned": True, "abandoned_rounds": 64},
            "64 rounds of abandoned attempts are summaries now",
        ),
        (
            "ledger",
            {"thinned": False, "round": 9, "message": "round 9 is missing"},
            "The ledger stays long, round 9 can't be thinned: round 9 is missing",
        ),
        ("something new", {"speed": 3, "none": None}, "speed 3"),
    ],
)
def test_events_are_told_in_words(type: str, data: dict[str, object], text: str) -> None:
    assert sentence(type, data) == text
