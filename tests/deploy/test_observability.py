"""A real Prometheus scrapes a real controller with running jobs: alerts are lived through, panels have data.

One scripted run under `paper`: an override, a worker killed, a rollback; and a short one under `auto`, for
the panels of the search. The picture of the Run dashboard is left in the folder that
``HDET_PICTURES`` names, else in the test's own.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.grafana.render import save
from deploy.grafana.source import Prometheus, Window
from deploy.prometheus.time_scale import TimeScale
from hdet_service.client import HDETClient
from hdet_service.metrics import METRICS
from tests.deploy.observed import ROOT
from tests.deploy.prometheus_server import (
    SCRAPE_INTERVAL_S,
    alert_state,
    empty_panels,
    marked_events,
    scraping,
    wait_for,
)
from tests.deploy.running_service import kill_a_worker, service

pytestmark = [pytest.mark.deploy, pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1200)]

SCALE = TimeScale(1 / 100)  # ten minutes are six seconds
MISSING = "HDETReplicasBelowDesired"
JOB_FOLDER = ROOT / "tests/deploy/watched_job"


@pytest.fixture
def home() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="hw-"))  # short: Ray puts sockets below it
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_a_run_is_watched_through_an_override_a_kill_and_a_rollback(home: Path, tmp_path: Path) -> None:
    pictures = Path(os.environ.get("HDET_PICTURES", tmp_path))
    gate = tmp_path / "gate"
    with service(home) as client:
        target = client.url.removeprefix("http://")
        scraper = client.create_token("prometheus", "metrics")["token"]
        with scraping(target, tmp_path, SCALE, scraper) as source:
            began_s = time.time()
            package = client.upload_package(JOB_FOLDER)
            settings: dict[str, object] = {"controller": "paper", "sync_every": 20, "warmup_steps": 60}
            paper = _submit(client, package, settings, gate)
            _wait_for_round(client, paper, 12)
            _override(client, paper)
            _lose_a_worker(client, source, paper, gate)
            _roll_back(client, paper)
            client.cancel(paper)
            auto = _submit(client, package, {"controller": "auto"}, gate, total_steps=500)
            _wait_for_state(client, auto, "SUCCEEDED")
            wait_for(
                lambda: alert_state(source, MISSING, paper) == "inactive", "finished: silent", limit_s=30.0
            )

            window = Window(start_s=began_s, end_s=time.time(), step_s=SCRAPE_INTERVAL_S)
            save("run", source, paper, window, SCRAPE_INTERVAL_S, pictures / "run.png")
            save("run", source, auto, window, SCRAPE_INTERVAL_S, pictures / "run-auto.png")
            save("fleet", source, "", window, SCRAPE_INTERVAL_S, pictures / "fleet.png")
            assert empty_panels(source, window, paper, auto) == []
            assert marked_events(source, window, paper) >= {"Overrides", "Rollbacks", "Lost replicas"}
            assert _never_exported(source, window) == set()


def _submit(
    client: HDETClient, package: str, hdet: dict[str, object], gate: Path, total_steps: int = 100_000
) -> str:
    job = client.submit(
        {
            "name": f"watched-{hdet['controller']}",
            "entrypoint": "watched_loop:train",
            "config": {"total_steps": total_steps, "pace_s": 0.02, "gate": str(gate)},
            "runtime_env": {"working_dir": package},
            "replicas": {"min": 4, "max": 4},
            "hdet": hdet,
            "checkpoint": {"keep": 50},  # none is pruned while the run is asked to go back to it
        }
    )
    return job["id"]


def _wait_for_round(client: HDETClient, job: str, number: int) -> None:
    def is_there() -> bool:
        _check_goes_on(client, job)
        return client.job(job)["state"] == "RUNNING" and client.schedule(job)["round"] >= number

    wait_for(is_there, f"round {number} of {job}", limit_s=300.0)


def _wait_for_state(client: HDETClient, job: str, state: str) -> None:
    def is_there() -> bool:
        _check_goes_on(client, job)
        return client.job(job)["state"] == state

    wait_for(is_there, f"{job} is {state}", limit_s=300.0)


def _check_goes_on(client: HDETClient, job: str) -> None:
    found = client.job(job)
    assert found["state"] not in ("FAILED", "CANCELED"), found


def _override(client: HDETClient, job: str) -> None:
    override = client.override(
        job,
        {"hparam": "lr", "op": "scale", "value": 0.5, "reason": "to see it on the dashboard"},
        if_match=client.schedule(job)["revision"],
    )
    wait_for(
        lambda: client.override_state(job, override["id"])["state"] == "applied",
        "the override is applied",
        limit_s=60.0,
    )


def _lose_a_worker(client: HDETClient, source: Prometheus, job: str, gate: Path) -> None:
    """The alert is pending, fires, and is resolved when the group, which the gate holds up, is back."""
    assert alert_state(source, MISSING, job) == "inactive"
    before = client.schedule(job)["round"]
    gate.touch()
    kill_a_worker(job)
    wait_for(lambda: alert_state(source, MISSING, job) == "pending", "the alert is pending", limit_s=60.0)
    assert client.job(job)["replicas"]["present"] == 0
    wait_for(lambda: alert_state(source, MISSING, job) == "firing", "the alert fires", limit_s=60.0)
    gate.unlink()
    _wait_for_round(client, job, before + 3)
    wait_for(lambda: alert_state(source, MISSING, job) == "inactive", "the alert is resolved", limit_s=60.0)


def _roll_back(client: HDETClient, job: str) -> None:
    to = min(checkpoint["round"] for checkpoint in client.checkpoints(job))
    attempt = client.job(job)["attempt"]
    client.rollback(job, to, reason="to see it on the dashboard")

    def is_new() -> bool:
        _check_goes_on(client, job)
        return client.job(job)["attempt"] > attempt

    wait_for(is_new, "a new attempt runs", limit_s=300.0)
    _wait_for_round(client, job, to + 10)


def _never_exported(source: Prometheus, window: Window) -> set[str]:
    """Metrics of the catalogue that the whole scripted run never showed."""
    names = {metric.name + ("_count" if metric.kind == "histogram" else "") for metric in METRICS}
    return {name for name in names if not source.ranged(f"count({name})", window)}
