"""Metrics: what a scrape says of runs, what it counts for good, and how much work it is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client import Metric as Family
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import event
from sqlalchemy.orm import Session

from hdet_ray.config import Auto, Fixed, Paper
from hdet_ray.core.overrides import Override
from hdet_ray.core.plan import value_at
from hdet_ray.train.protocol import ExchangeRequest, request_to_json
from hdet_service.events import record
from hdet_service.metrics import (
    METRICS,
    OVERRIDES,
    REPLICA_FAILURES,
    SYNC_FAILURES,
    Metrics,
    OverrideResult,
    SubmissionResult,
    SyncFailure,
    add_counts,
    one,
    scrape,
)
from hdet_service.metrics import runs as run_views
from hdet_service.metrics.page import with_table
from hdet_service.states import Reason, State
from hdet_service.store.database import Store
from hdet_service.store.models import Job, OverrideRow, Transition
from tests.service.recorded_runs import RecordedRun, stored_lines
from tests.service.served import PlayedRun, served

NOW_S = 1_800_000_000.0
GRACE_S = 300.0
PAPER = Paper(sync_every=50, warmup_steps=50)
FAN = Fixed(alpha=1 / 9, sync_every=50)

Values = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Clock:
    def __init__(self) -> None:
        self.now = NOW_S

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    store = Store.open(tmp_path / "hdet.sqlite3", clock=clock)
    yield store
    store.close()


@pytest.fixture
def metrics(store: Store) -> Metrics:
    return Metrics(store, finished_series_grace_s=GRACE_S)


def families_of(metrics: Metrics) -> dict[str, Family]:
    text = metrics.render().decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def values_of(metrics: Metrics) -> Values:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families_of(metrics).values()
        for sample in family.samples
    }


def value(values: Values, name: str, run: RecordedRun | str | None = None, **labels: str) -> float:
    run_id = run.id if isinstance(run, RecordedRun) else run
    given = labels if run_id is None else {**labels, "run": run_id}
    return values[name, frozenset(given.items())]


def names_of(values: Values, run: RecordedRun) -> set[str]:
    return {name for name, labels in values if ("run", run.id) in labels}


def test_every_family_has_the_name_type_help_and_labels_of_the_catalogue(
    store: Store, metrics: Metrics
) -> None:
    RecordedRun(store, "a", controller=PAPER, facts={"samples": 8.0}).advance(4)
    RecordedRun(store, "b").advance(2)
    for run_id in ("a", "b"):
        store.write_sync(lambda s, job_id=run_id: setattr(s.get_one(Job, job_id), "last_checkpoint_s", NOW_S))
    metrics.observe_request("GET", "/v1/jobs", 200, 0.01)
    families = families_of(metrics)
    expected = {m.name.removesuffix("_total") if m.kind == "counter" else m.name: m for m in METRICS}
    assert set(families) == set(expected)
    for name, metric in expected.items():
        family = families[name]
        assert (family.type, family.documentation) == (metric.kind, metric.help)
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(metric.labels), sample
            if metric.values:
                assert sample.labels[metric.labels[-1]] in metric.values


def test_no_label_has_a_name_that_a_scrape_or_kubernetes_puts_there() -> None:
    for metric in METRICS:
        assert not {"job", "instance", "pod", "namespace", "container", "node"} & set(metric.labels)


def test_a_run_shows_where_it_is_and_what_each_replica_does(store: Store, metrics: Metrics) -> None:
    run = RecordedRun(store, "a", controller=FAN)
    run.advance(3)
    values = values_of(metrics)
    assert value(values, "hdet_round", run) == 3
    assert value(values, "hdet_step", run) == 150
    assert value(values, "hdet_phase", run, phase="fan_out") == 1
    assert value(values, "hdet_phase", run, phase="scout") == 0
    assert value(values, "hdet_base_hparam", run, hparam="lr", group="0") == run.plan.base["lr", 0]
    for replica in range(4):
        shown = value(values, "hdet_replica_hparam", run, hparam="lr", group="0", replica=str(replica))
        assert shown == pytest.approx(value_at(run.plan, "lr", 0, replica, run.plan.step), rel=1e-12)
    assert value(values, "hdet_param_divergence_ratio", run) == pytest.approx(0.012)
    assert value(values, "hdet_last_sync_timestamp_seconds", run) == run.now
    losses = [value(values, "hdet_replica_loss", run, replica=str(r)) for r in range(4)]
    assert value(values, "hdet_loss_spread", run) == max(losses) - min(losses)


def test_a_search_shows_its_best_rate_and_counts_its_steps_and_its_dead(
    store: Store, metrics: Metrics
) -> None:
    run = RecordedRun(store, "a", max_lr=1.0)  # far too high: candidates die
    run.advance(1)
    values = values_of(metrics)
    search = run.state.search
    assert search is not None
    dead = sum(p.is_dead for p in search.points)
    assert dead > 0
    assert value(values, "hdet_search_dead_total", run) == dead
    assert value(values, "hdet_search_steps_total", run) == run.state.search_steps
    assert value(values, "hdet_search_best_hparam", run, hparam="lr", group="0") == pytest.approx(
        math.exp(search.best)
    )


def test_without_a_search_the_papers_rule_or_a_sampler_their_series_are_not_there(
    store: Store, metrics: Metrics
) -> None:
    fixed = RecordedRun(store, "a", controller=Fixed(alpha=0.0, sync_every=50))
    paper = RecordedRun(store, "b", controller=PAPER, facts={"samples": 8.0})
    fixed.advance(4)
    paper.advance(4)
    values = values_of(metrics)
    absent = {
        "hdet_search_dead_total",
        "hdet_search_steps_total",
        "hdet_search_best_hparam",
        "hdet_autolr_delta",
        "hdet_autolr_velocity",
        "hdet_samples_total",
        "hdet_param_divergence_ratio",
    }
    assert not absent & names_of(values, fixed)
    assert {"hdet_autolr_delta", "hdet_autolr_velocity", "hdet_samples_total"} <= names_of(values, paper)
    delta = value(values, "hdet_autolr_delta", paper, hparam="lr", group="0")
    assert delta == paper.state.delta["lr", 0]
    assert value(values, "hdet_samples_total", paper) == 32


def test_a_loss_that_is_not_finite_is_nan_and_its_replica_weighs_nothing(
    store: Store, metrics: Metrics
) -> None:
    local = Fixed(alpha=1 / 9, sync_every=50, gradient_sync="local")
    run = RecordedRun(
        store, "a", controller=local, loss_of=lambda rate, progress, r: math.nan if r == 2 else 2.0 + r
    )
    run.advance(2)
    values = values_of(metrics)
    assert math.isnan(value(values, "hdet_replica_loss", run, replica="2"))
    weights = [value(values, "hdet_replica_weight_ratio", run, replica=str(r)) for r in range(4)]
    assert weights == [1, 1, 0, 1]
    assert value(values, "hdet_replica_quarantines_total", run, reason="nonfinite") == 2
    assert value(values, "hdet_replica_quarantines_total", run, reason="exploded") == 0
    assert value(values, "hdet_loss_spread", run) == pytest.approx(3.0, abs=0.2)


def test_a_rollback_is_counted_and_nobody_was_left_out_of_an_average(store: Store, metrics: Metrics) -> None:
    run = RecordedRun(store, "a", controller=FAN, loss_of=lambda rate, progress, r: math.nan)
    run.advance(1)
    values = values_of(metrics)
    assert value(values, "hdet_rollbacks_total", run) == 1
    assert value(values, "hdet_replica_quarantines_total", run, reason="nonfinite") == 0
    assert value(values, "hdet_sync_bytes_total", run) == 0


def test_bytes_are_those_of_averages_and_every_boundary_has_a_duration(
    store: Store, metrics: Metrics
) -> None:
    run = RecordedRun(store, "a", controller=FAN)
    run.advance(3)
    values = values_of(metrics)
    assert value(values, "hdet_sync_bytes_total", run) == 3 * 4096
    assert value(values, "hdet_sync_duration_seconds_count", run) == 3
    assert value(values, "hdet_sync_duration_seconds_sum", run) == pytest.approx(0.012)
    assert value(values, "hdet_sync_duration_seconds_bucket", run, le="0.001") == 0
    assert value(values, "hdet_sync_duration_seconds_bucket", run, le="0.005") == 3
    assert value(values, "hdet_sync_duration_seconds_bucket", run, le="+Inf") == 3


def test_a_base_that_was_driven_to_a_bound_says_so(store: Store, metrics: Metrics) -> None:
    run = RecordedRun(store, "a", controller=FAN)
    run.advance(1)
    assert value(values_of(metrics), "hdet_hparam_at_bound", run, hparam="lr", group="0") == 0
    low = run.state.bounds["lr", 0][0]
    run.advance(1, commands=(Override(id="o", hparam="lr", op="set", value=low),))
    assert value(values_of(metrics), "hdet_hparam_at_bound", run, hparam="lr", group="0") == 1


def test_wanted_and_present_replicas_follow_the_jobs_state(store: Store, metrics: Metrics) -> None:
    run = RecordedRun(store, "a")
    expected = {
        State.RUNNING: (4, 4),
        State.DEGRADED: (4, 4),
        State.QUEUED: (4, 0),  # waits for a retry
        State.PAUSED: (0, 0),
        State.STOPPING: (0, 4),
        State.SUCCEEDED: (0, 0),
    }
    for state, (wanted, present) in expected.items():
        run.set_job(state=state, finished_s=NOW_S if state is State.SUCCEEDED else None)
        values = values_of(metrics)
        shown = [value(values, "hdet_replicas", run, state=s) for s in ("wanted", "present")]
        assert shown == [wanted, present], state
    run.set_job(state=State.QUEUED, reason=Reason.WAITING_FOR_SLOT, finished_s=None)
    assert value(values_of(metrics), "hdet_replicas", run, state="wanted") == 0
    run.set_job(state=State.DEGRADED, reason=Reason.REPLICA_LOST, replicas_present=0)
    assert value(values_of(metrics), "hdet_replicas", run, state="present") == 0


def test_a_finished_jobs_series_go_away_after_its_grace_and_its_state_stays_counted(
    store: Store, metrics: Metrics, clock: Clock
) -> None:
    done, going = RecordedRun(store, "a"), RecordedRun(store, "b")
    done.advance(2)
    done.set_job(state=State.FAILED, finished_s=NOW_S)
    clock.now = NOW_S + GRACE_S - 1
    assert names_of(values_of(metrics), done)
    clock.now = NOW_S + GRACE_S + 1
    values = values_of(metrics)
    assert not names_of(values, done)
    assert names_of(values, going)
    assert value(values, "hdet_jobs", state="FAILED") == 1
    assert value(values, "hdet_jobs", state="RUNNING") == 1
    assert value(values, "hdet_jobs", state="PAUSED") == 0


def test_counters_start_at_zero_so_that_a_first_increase_is_seen(store: Store, metrics: Metrics) -> None:
    run = RecordedRun(store, "a")
    values = values_of(metrics)
    for metric in METRICS:
        if metric.is_of_run and metric.kind == "counter" and metric.when == "always":
            for label in metric.values or ("",):
                labels = {metric.labels[-1]: label} if metric.values else {}
                assert value(values, metric.name, run, **labels) == 0


def test_counters_outlive_a_restart_of_the_controller_and_no_retry_takes_them_back(
    tmp_path: Path, store: Store, metrics: Metrics, clock: Clock
) -> None:
    run = RecordedRun(store, "a", facts={"samples": 10.0})
    run.advance(3)
    store.write_sync(lambda s: add_counts(s, "a", one(SYNC_FAILURES, SyncFailure.LATE)))
    before = values_of(metrics)
    run.restart(1)
    run.advance(1)
    after = values_of(metrics)
    counted = [key for key in before if key[0].endswith(("_total", "_count", "_sum", "_bucket"))]
    assert all(after[key] >= before[key] for key in counted)
    assert value(after, "hdet_samples_total", run) == 40  # the repeated round was trained again
    store.close()
    with_restart = Store.open(tmp_path / "hdet.sqlite3", clock=clock)
    again = values_of(Metrics(with_restart, finished_series_grace_s=GRACE_S))
    with_restart.close()
    assert again.keys() == after.keys()
    assert all(again[key] == pytest.approx(after[key], nan_ok=True) for key in after)


def test_what_a_failed_write_counted_is_not_counted(store: Store, metrics: Metrics) -> None:
    run = RecordedRun(store, "a")

    def fails(session: Session) -> None:
        add_counts(session, run.id, one(REPLICA_FAILURES, "ReplicaLost"))
        raise KeyError("the exchange was refused after all")

    with pytest.raises(KeyError):
        store.write_sync(fails)
    assert value(values_of(metrics), "hdet_replica_failures_total", run, reason="ReplicaLost") == 0


def test_a_recovery_lasts_from_the_last_report_to_the_next_attempts_first(
    store: Store, metrics: Metrics
) -> None:
    run = RecordedRun(store, "a")
    run.advance(3)
    run.restart(2)
    run.now += 17.0
    run.advance(2)
    values = values_of(metrics)
    assert value(values, "hdet_recovery_duration_seconds_count", run) == 1
    assert value(values, "hdet_recovery_duration_seconds_sum", run) == pytest.approx(17.0, abs=1.0)
    assert value(values, "hdet_recovery_duration_seconds_bucket", run, le="10.0") == 0
    assert value(values, "hdet_recovery_duration_seconds_bucket", run, le="20.0") == 1


def test_a_pause_is_no_recovery(store: Store, metrics: Metrics) -> None:
    run = RecordedRun(store, "a")
    run.advance(3)
    store.write_sync(
        lambda s: s.add(Transition(job_id="a", state="PAUSED", reason="Paused", at_s=run.now + 1))
    )
    run.restart(3)
    run.now += 3600
    run.advance(1)
    assert value(values_of(metrics), "hdet_recovery_duration_seconds_count", run) == 0


def test_overrides_in_force_and_the_stations_that_they_passed(store: Store, metrics: Metrics) -> None:
    run = RecordedRun(store, "a")

    def write(session: Session) -> None:
        for i, state in enumerate(["applied", "applied", "pending", "expired"]):
            session.add(
                OverrideRow(
                    id=f"o{i}",
                    job_id="a",
                    body={},
                    state=state,
                    created_by="ada",
                    created_s=NOW_S,
                    updated_s=NOW_S,
                )
            )
        add_counts(session, "a", one(OVERRIDES, OverrideResult.APPLIED))

    store.write_sync(write)
    values = values_of(metrics)
    assert value(values, "hdet_override_active", run) == 2
    assert value(values, "hdet_schedule_overrides_total", run, result="applied") == 1
    assert value(values, "hdet_schedule_overrides_total", run, result="refused") == 0


def test_a_counter_refuses_a_label_outside_its_closed_set() -> None:
    with pytest.raises(ValueError, match="'because' is none of late, resync"):
        one(SYNC_FAILURES, "because")


def test_requests_are_counted_by_template_and_never_by_path(metrics: Metrics) -> None:
    for path_seconds in (0.002, 0.2):
        metrics.observe_request("GET", "/v1/jobs/{job_id}", 200, path_seconds)
    metrics.observe_request("BREW", None, 404, 0.001)
    metrics.observe_request("GET", "/v1/jobs/{job_id}/events", 200, 3600.0, is_stream=True)
    metrics.observe_submission(SubmissionResult.REPEATED)
    with metrics.stream(), metrics.stream():
        values = values_of(metrics)
    job = {"method": "GET", "route": "/v1/jobs/{job_id}"}
    assert value(values, "hdet_http_requests_total", **job, status="200") == 2
    assert value(values, "hdet_http_request_duration_seconds_bucket", **job, le="0.0025") == 1
    assert value(values, "hdet_http_request_duration_seconds_count", **job) == 2
    assert value(values, "hdet_http_request_duration_seconds_sum", **job) == pytest.approx(0.202)
    assert value(values, "hdet_http_requests_total", method="OTHER", route="unmatched", status="404") == 1
    assert value(values, "hdet_job_submissions_total", result="repeated") == 1
    assert value(values, "hdet_sse_clients") == 2
    assert value(values_of(metrics), "hdet_sse_clients") == 0
    streamed = ("hdet_http_request_duration_seconds_count", frozenset({**job}.items()))
    assert streamed in values
    assert not any(
        "/events" in dict(labels).get("route", "") for name, labels in values if "duration" in name
    )


def test_a_view_from_the_database_says_what_the_exchange_said(store: Store, metrics: Metrics) -> None:
    for controller, run_id in ((Auto(), "a"), (PAPER, "b"), (FAN, "c")):
        run = RecordedRun(store, run_id, controller=controller)
        view = run.advance(5)[-1]
        read = store.read_sync(lambda s, job_id=run_id: run_views.view_from_database(s, job_id))
        assert read is not None
        assert read.key == view.key
        assert read.samples == view.samples


def test_after_a_restart_went_back_the_weights_of_another_plan_are_not_shown(
    store: Store, metrics: Metrics
) -> None:
    run = RecordedRun(store, "a", controller=FAN)
    run.advance(4)
    run.restart(2)
    values = values_of(metrics)
    assert value(values, "hdet_round", run) == 2
    assert "hdet_replica_loss" in names_of(values, run)
    assert "hdet_replica_weight_ratio" not in names_of(values, run)


def test_a_state_of_a_newer_release_costs_its_own_gauges_alone(store: Store, metrics: Metrics) -> None:
    strange, plain = RecordedRun(store, "a"), RecordedRun(store, "b")
    strange.set_job(schedule={"version": 99, "state": {}}, plan_digest="other")
    values = values_of(metrics)
    assert "hdet_base_hparam" not in names_of(values, strange)
    assert value(values, "hdet_round", strange) == 0
    assert "hdet_base_hparam" in names_of(values, plain)


# ---------------------------------------------------------------------- how much work a scrape is


def test_a_scrape_asks_as_many_queries_for_a_thousand_jobs_as_for_one(
    store: Store, metrics: Metrics, clock: Clock
) -> None:
    run = RecordedRun(store, "a")
    metrics.observe_round(run.id, run.advance(1)[0])
    asked: list[str] = []
    event.listen(store._reading, "before_cursor_execute", lambda *args: asked.append(args[2]))
    metrics.render()
    few = len(asked)
    add_finished_jobs(store, 999, finished_s=NOW_S - GRACE_S - 1)
    asked.clear()
    values = values_of(metrics)
    assert len(asked) == few <= 6
    assert value(values, "hdet_jobs", state="SUCCEEDED") == 999
    assert {dict(labels)["run"] for _, labels in values if "run" in dict(labels)} == {"a"}


def test_between_two_rounds_a_scrape_computes_nothing_anew(
    store: Store, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [RecordedRun(store, f"r{i}") for i in range(5)]
    for run in runs:
        run.advance(2)
    metrics.render()  # as after a restart: all five are read
    read: list[str] = []
    original = run_views.view_from_database
    monkeypatch.setattr(
        "hdet_service.metrics.scrape.view_from_database",
        lambda session, job_id: read.append(job_id) or original(session, job_id),
    )
    metrics.render()
    assert read == []
    runs[3].advance(1)
    metrics.render()
    assert read == ["r3"]
    metrics.observe_round(runs[4].id, runs[4].advance(1)[0])
    metrics.render()
    assert read == ["r3"]


def test_of_a_thousand_replicas_each_is_one_series_and_groups_are_bounded(
    store: Store, metrics: Metrics
) -> None:
    wide = RecordedRun(store, "a", controller=FAN, num_replicas=1024)
    many = RecordedRun(store, "b", controller=FAN, num_replicas=1024, groups=30)
    for run in (wide, many):
        metrics.observe_round(run.id, run.advance(1)[0])
    values = values_of(metrics)
    for run, hparams in ((wide, 2), (many, 8)):
        counted = [n for n, labels in values if n == "hdet_replica_hparam" and ("run", run.id) in labels]
        assert len(counted) == hparams * 1024
    assert sum(n == "hdet_replica_loss" and ("run", "a") in labels for n, labels in values) == 1024
    groups = {
        dict(labels)["group"] for n, labels in values if n == "hdet_base_hparam" and ("run", "b") in labels
    }
    assert len(groups) == 30


def test_views_of_jobs_that_are_over_are_given_up(store: Store, metrics: Metrics, clock: Clock) -> None:
    run = RecordedRun(store, "a")
    metrics.observe_round(run.id, run.advance(1)[0])
    metrics.render()
    assert "a" in metrics._views
    run.set_job(state=State.CANCELED, finished_s=NOW_S)
    clock.now += GRACE_S + 1
    metrics.render()
    assert metrics._views == {}


def test_where_nobody_scrapes_the_newest_views_alone_are_kept(
    store: Store, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrape, "MAX_VIEWS", 2)
    view = RecordedRun(store, "a").advance(1)[0]
    for job_id in ("a", "b", "a", "c"):
        metrics.observe_round(job_id, view)
    assert list(metrics._views) == ["a", "c"]


def test_a_view_that_is_newer_than_the_transaction_is_shown(store: Store, metrics: Metrics) -> None:
    run = RecordedRun(store, "a")
    run.advance(2)
    newer = run.advance(1)[0]
    run.restart(2)
    run.set_job(attempt=1)
    metrics.observe_round("a", newer)
    metrics.render()
    assert metrics._views["a"] is newer


def test_rounds_of_one_run_are_counted_once_each(store: Store, metrics: Metrics) -> None:
    run = RecordedRun(store, "a", controller=FAN)
    run.advance(4)
    assert len(stored_lines(store, "a")) == 4
    assert value(values_of(metrics), "hdet_sync_duration_seconds_count", run) == 4


def add_finished_jobs(store: Store, number: int, *, finished_s: float) -> None:
    def write(session: Session) -> None:
        for i in range(number):
            session.add(
                Job(
                    id=f"done{i:04}",
                    name="done",
                    owner="ada",
                    spec={"replicas": {"min": 4, "max": 4}},
                    state=State.SUCCEEDED,
                    reason="Completed",
                    created_s=finished_s - 100,
                    updated_s=finished_s,
                    finished_s=finished_s,
                    submission=1,
                )
            )

    store.write_sync(write)


def test_the_page_lists_the_metrics_that_there_are() -> None:
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert with_table(page) == page, "run: python -m hdet_service.metrics.page docs/metrics.md"


@pytest.mark.parametrize(
    ("type", "data", "name", "label"),
    [
        ("override", {"state": "applied"}, "hdet_schedule_overrides_total", {"result": "applied"}),
        ("audit", {"action": "rollback"}, "hdet_rollbacks_total", {}),
    ],
)
def test_an_event_counts_in_the_write_that_records_it(
    store: Store, metrics: Metrics, type: str, data: dict[str, str], name: str, label: dict[str, str]
) -> None:
    run = RecordedRun(store, "a")
    store.write_sync(lambda s: record(s, "a", type, data, NOW_S) and None)
    assert value(values_of(metrics), name, run, **label) == 1


def test_the_real_service_counts_what_happens_to_a_run(tmp_path: Path) -> None:
    with served(tmp_path, silence_timeout_s=3600) as service:
        headers = {"Authorization": f"Bearer {service.token}"}
        client = httpx.Client(base_url=service.url, headers=headers, timeout=30)
        spec = {"name": "x", "entrypoint": "byte_lm", "replicas": {"min": 3, "max": 3}}
        job_id = client.post("/v1/jobs", json=spec).json()["id"]
        service.run(service.controller.tick())
        run = PlayedRun(service, job_id, controller=FAN)
        run.advance(2)
        override = {"hparam": "lr", "op": "scale", "value": 0.5, "reason": "test"}
        path = f"/v1/jobs/{job_id}/schedule/overrides"
        assert client.post(path, json=override, headers={"If-Match": "*"}).status_code == 202
        run.advance(2)
        stale = ExchangeRequest(job=job_id, attempt=0, submission=1, round=4, report={})
        answer = service.run(service.controller.call("exchange", request_to_json(stale)))
        assert answer["status"] == "fenced"
        text = client.get("/metrics").text
        client.close()
    values = {
        (s.name, frozenset(s.labels.items())): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }
    assert value(values, "hdet_schedule_overrides_total", job_id, result="accepted") == 1
    assert value(values, "hdet_schedule_overrides_total", job_id, result="applied") == 1
    assert value(values, "hdet_override_active", job_id) == 1
    assert value(values, "hdet_sync_failures_total", job_id, reason="fenced") == 1
    assert value(values, "hdet_sync_failures_total", job_id, reason="late") == 0
    assert value(values, "hdet_sync_duration_seconds_count", job_id) == 4
    assert value(values, "hdet_replicas", job_id, state="present") == 3
    assert value(values, "hdet_job_submissions_total", result="created") == 1
    posted = {"method": "POST", "route": "/v1/jobs", "status": "201"}
    assert value(values, "hdet_http_requests_total", **posted) == 1
