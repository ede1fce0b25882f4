"""The controller killed by -9 while it is needed: training does not notice, and nothing is lost."""

from __future__ import annotations

import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from tests.service.live import Live, live_service, wait_for
from tests.service.users import export, history, rates_of, upload_project

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.timeout(1800)]

NUM_KILLS = 20
TOTAL_STEPS = 1500
CONTROL_TIMEOUT_S = 1.0


@pytest.fixture(scope="module")
def service() -> Iterator[Live]:
    with live_service() as running:
        yield running


def submit(service: Live, environment: dict[str, Any], trace: Path, pace_s: float) -> str:
    """The user's project on two replicas."""
    trace.mkdir(exist_ok=True)
    config = {"total_steps": TOTAL_STEPS, "pace_s": pace_s, "trace": str(trace)}
    return service.submit(
        entrypoint="mine:train", config=config, runtime_env=environment, replicas={"min": 2, "max": 2}
    )


def kill_controller(service: Live) -> float:
    """Seconds until it answers again."""
    os.kill(service.status()["controller"]["pid"], signal.SIGKILL)
    began_s = time.monotonic()
    wait_for(lambda: httpx.get(f"{service.url}/readyz", timeout=1.0).status_code == 200 or None, 60)
    return time.monotonic() - began_s


def test_twenty_kills_change_no_bit_and_lose_no_round(service: Live, tmp_path: Path) -> None:
    environment = upload_project(service, tmp_path)
    calm = submit(service, environment, tmp_path / "calm", 0.0)
    assert service.wait_end(calm)["state"] == "SUCCEEDED", service.describe(calm)
    job_id = submit(service, environment, tmp_path / "killed", 0.1)
    service.wait(job_id, lambda job: job["state"] == "RUNNING")
    moments = random.Random(6)
    back_s = []
    for _ in range(NUM_KILLS):
        time.sleep(moments.uniform(0.0, 2.0))
        back_s.append(kill_controller(service))
    assert service.job(job_id)["state"] == "RUNNING", "the kills came too late to matter"
    assert max(back_s) < 10, back_s
    job = service.wait_end(job_id, 900)
    assert (job["state"], job["attempt"], job["submission"]) == ("SUCCEEDED", 1, 1), service.describe(job_id)
    items, expected = history(service, job_id), history(service, calm)
    assert [item["plan"] for item in items] == [item["plan"] for item in expected]
    assert [item["round"] for item in items] == list(range(len(expected)))
    assert service.hdet("replay", job_id).returncode == 0
    killed, undisturbed = (export(service, each, tmp_path / each) for each in (job_id, calm))
    assert killed.keys() == undisturbed.keys()
    assert all(torch.equal(killed[name], undisturbed[name]) for name in killed)


def test_overrides_that_the_controller_dies_over_apply_once_or_not_at_all(
    service: Live, tmp_path: Path
) -> None:
    environment = upload_project(service, tmp_path)
    job_id = submit(service, environment, tmp_path / "trace", 0.05)
    path = f"/v1/jobs/{job_id}/schedule"
    wait_for(
        lambda: service.ask("GET", path).json()["phase"] == "train" or None,
        300,
        lambda: service.describe(job_id),
    )
    moments, accepted = random.Random(7), []
    for number in range(5):
        etag = wait_for(lambda: service.ask("GET", path).headers["ETag"], 60)
        killer = threading.Timer(moments.uniform(0.0, 0.05), kill_controller, [service])
        killer.start()
        asked = {"hparam": "lr", "op": "scale", "value": 0.9, "reason": f"number {number}"}
        try:
            answer = service.ask("POST", f"{path}/overrides", json=asked, headers={"If-Match": etag})
            if answer.status_code == 202:
                accepted.append(answer.json()["id"])
        except httpx.HTTPError:
            pass  # no answer: it may have been stored or not
        killer.join()
    assert service.wait_end(job_id, 900)["state"] == "SUCCEEDED", service.describe(job_id)
    items = history(service, job_id)
    folded = [
        command["id"]
        for item in items
        for command in item["report"].get("commands", ())
        if command["kind"] == "override"
    ]
    assert len(folded) == len(set(folded)), "an override was folded in twice"
    assert set(accepted) <= set(folded), "an accepted override was lost"
    last = items[-2]["plan"]["scale"]["lr"]["0"]
    first = next(item["plan"]["scale"]["lr"]["0"] for item in items if item["plan"]["phase"] == "train")
    assert last == pytest.approx(first * 0.9 ** len(folded), rel=1e-9)
    assert len(rates_of(tmp_path / "trace", 0)) == TOTAL_STEPS, "training was started anew"


def test_a_minute_without_controller_costs_training_one_timeout(service: Live, tmp_path: Path) -> None:
    """The actor is stopped, not killed: calls to it hang until they time out."""
    environment = upload_project(service, tmp_path)
    job_id = submit(service, environment, tmp_path / "trace", 0.05)
    service.wait(job_id, lambda job: job["progress"]["step"] > 200)
    process = service.status()["controller"]["pid"]
    stopped_s = time.monotonic()
    os.kill(process, signal.SIGSTOP)
    try:
        time.sleep(60)
    finally:
        os.kill(process, signal.SIGCONT)
    assert service.wait_end(job_id, 900)["state"] == "SUCCEEDED", service.describe(job_id)
    items = history(service, job_id)
    assert [item["round"] for item in items] == list(range(len(items)))
    steps = rates_of(tmp_path / "trace", 0)
    boundaries = [b for a, b in itertools.pairwise(steps) if a["round"] != b["round"]]
    before = {b["step"]: a["at_s"] for a, b in itertools.pairwise(steps)}
    waits = [(b["at_s"] - stopped_s, b["at_s"] - before[b["step"]]) for b in boundaries]
    long_waits = [wait for wait in waits if wait[0] > 0 and wait[1] > CONTROL_TIMEOUT_S * 0.9]
    assert len(long_waits) <= 1, long_waits
    assert any(0 < after_s < 60 for after_s, _ in waits), "training ended before the controller was stopped"
    assert service.job(job_id)["attempt"] == 1
