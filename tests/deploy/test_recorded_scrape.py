"""A real Prometheus scrapes the service's own metrics of recorded runs: panels have data, alerts live.

No Ray here: the store and the exposition are the service's, the runs are played. `test_observability.py`
does the same with a real controller and real workers.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from deploy.grafana.render import save
from deploy.grafana.source import Prometheus, Window
from deploy.prometheus.time_scale import TimeScale
from hdet_ray.config import Auto, Controller, Fixed, Paper
from hdet_service.metrics import (
    OVERRIDES,
    REPLICA_FAILURES,
    ROLLBACKS,
    Metrics,
    OverrideResult,
    SubmissionResult,
    add_counts,
    one,
)
from hdet_service.states import Reason, State
from hdet_service.store.database import Store
from hdet_service.store.models import OverrideRow
from tests.deploy.prometheus_server import (
    SCRAPE_INTERVAL_S,
    alert_state,
    empty_panels,
    free_port,
    scraping,
    wait_for,
)
from tests.service.recorded_runs import Loss, RecordedRun, bowl

pytestmark = [pytest.mark.deploy, pytest.mark.slow]

SCALE = TimeScale(1 / 200)  # ten minutes are three seconds
MISSING = "HDETReplicasBelowDesired"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.open(tmp_path / "hdet.sqlite3")
    yield store
    store.close()


def test_panels_have_data_and_an_alert_is_lived_through(store: Store, tmp_path: Path) -> None:
    metrics = Metrics(store)
    paper = Played(store, "01PAPER", Paper(sync_every=20, warmup_steps=40))
    auto = Played(store, "01AUTO", Auto())
    with exposed(metrics) as target, scraping(target, tmp_path, SCALE) as source:
        began_s = time.time()

        def train() -> None:
            for run in (paper, auto):
                run.train()
            metrics.observe_request("GET", "/v1/jobs", 200, 0.01)
            metrics.observe_exchange(0.004)

        def until(condition: Callable[[], bool], what: str) -> None:
            wait_for(condition, what, limit_s=40.0, between=train)

        until(lambda: len(seen(source, "hdet_round")) == 2, "both runs are scraped")
        until(lambda: paper.recorded.state.round > 8, "the paper's rule moves the base")
        metrics.observe_submission(SubmissionResult.CREATED)
        paper.override()
        until(lambda: alert_state(source, MISSING, paper.id) == "inactive", "nobody is missed yet")

        paper.lose_a_worker()
        until(lambda: alert_state(source, MISSING, paper.id) == "pending", "it is pending")
        until(lambda: alert_state(source, MISSING, paper.id) == "firing", "it fires")
        paper.come_back()
        until(lambda: alert_state(source, MISSING, paper.id) == "inactive", "it is resolved")
        assert alert_state(source, MISSING, auto.id) == "inactive"
        paper.roll_back()
        until(lambda: auto.recorded.state.round > 12, "the search is over")
        until(lambda: paper.recorded.state.round > 14, "the run goes on")

        window = Window(start_s=began_s, end_s=time.time(), step_s=SCRAPE_INTERVAL_S)
        save("run", source, paper.id, window, SCRAPE_INTERVAL_S, tmp_path / "run.png")
        save("fleet", source, "", window, SCRAPE_INTERVAL_S, tmp_path / "fleet.png")
        assert empty_panels(source, window, paper.id, auto.id) == []


def test_the_alerts_of_one_run_leave_its_neighbours_alone(store: Store, tmp_path: Path) -> None:
    metrics = Metrics(store)
    sick = Played(store, "01SICK", Fixed(alpha=1 / 9, sync_every=20, gradient_sync="local"))
    well = Played(store, "01WELL", Fixed(alpha=1 / 9, sync_every=20, gradient_sync="local"))
    with exposed(metrics) as target, scraping(target, tmp_path, SCALE) as source:

        def until_firing(alert: str, train: Callable[[], None]) -> None:
            wait_for(
                lambda: alert_state(source, alert, sick.id) == "firing",
                f"{alert} fires",
                limit_s=40.0,
                between=train,
            )
            assert alert_state(source, alert, well.id) == "inactive"

        wait_for(lambda: len(seen(source, "hdet_round")) == 2, "both are scraped", limit_s=20.0)
        sick.train(loss_of=lambda rate, progress, replica: math.nan if replica == 2 else 2.0)
        until_firing("HDETReplicaUnhealthy", well.train)
        until_firing("HDETSyncStalled", well.train)  # it has not met since
        until_firing("HDETCheckpointStale", well.train)
        sick.pause()
        for alert in ("HDETSyncStalled", "HDETCheckpointStale", "HDETReplicaUnhealthy"):
            wait_for(
                lambda alert=alert: alert_state(source, alert, sick.id) == "inactive",
                f"a paused job has no {alert}",
                limit_s=20.0,
                between=well.train,
            )


def test_a_controller_that_is_gone_is_missed_and_then_found_again(store: Store, tmp_path: Path) -> None:
    metrics = Metrics(store)
    port = free_port()

    def until(state: str) -> None:
        wait_for(lambda: alert_state(source, "HDETControllerDown") == state, f"it is {state}", limit_s=20.0)

    with scraping(f"127.0.0.1:{port}", tmp_path, SCALE) as source:
        with exposed(metrics, port):
            wait_for(lambda: bool(seen(source, "hdet_build_info")), "it is scraped", limit_s=20.0)
            until("inactive")
        until("firing")
        with exposed(metrics, port):
            until("inactive")


def seen(source: Prometheus, expr: str) -> list[object]:
    return source.get("query", query=expr)["result"]


class Played:
    """A recorded run in the present."""

    def __init__(self, store: Store, run: str, controller: Controller) -> None:
        self.id = run
        self.is_present = True
        self.recorded = RecordedRun(
            store,
            run,
            controller=controller,
            total_steps=6000,
            at_s=time.time(),
            facts={"samples": 640.0, "wall_s": 0.2},
        )

    def train(self, loss_of: Loss = bowl) -> None:
        """One round, unless its workers are gone."""
        if not self.is_present:
            return
        self.recorded.loss_of = loss_of
        self.recorded.now = time.time() - self.recorded.facts["wall_s"]
        self.recorded.advance(1)
        self.recorded.set_job(last_checkpoint_s=time.time())

    def count(self, counts: dict[str, float]) -> None:
        self.recorded.store.write_sync(lambda session: add_counts(session, self.id, counts))

    def override(self) -> None:
        now = time.time()
        row = OverrideRow(
            id="o1", job_id=self.id, state="applied", body={}, created_by="ada", created_s=now, updated_s=now
        )
        self.recorded.store.write_sync(lambda session: session.add(row))
        self.count(one(OVERRIDES, OverrideResult.ACCEPTED) | one(OVERRIDES, OverrideResult.APPLIED))

    def lose_a_worker(self) -> None:
        self.is_present = False
        self.recorded.set_job(state=State.DEGRADED, reason=Reason.REPLICA_LOST, replicas_present=0)
        self.count(one(REPLICA_FAILURES, Reason.REPLICA_LOST))

    def pause(self) -> None:
        self.recorded.set_job(state=State.PAUSED, reason=Reason.PAUSED, updated_s=time.time())

    def come_back(self) -> None:
        self.is_present = True
        self.recorded.restart(self.recorded.state.round - 1)
        self.recorded.set_job(state=State.RUNNING, reason=Reason.RUNNING, replicas_present=4)

    def roll_back(self) -> None:
        self.count(one(ROLLBACKS))
        self.recorded.restart(self.recorded.state.round - 3)


@contextmanager
def exposed(metrics: Metrics, port: int = 0) -> Iterator[str]:
    """The exposition over HTTP; the address as Prometheus wants it. Port 0: any."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = metrics.render()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
