"""`hdet up --supervise`: what dies comes back, and what it took along is marked as it was."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service.live import Live, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def supervised() -> Iterator[tuple[Live, subprocess.Popen[bytes]]]:
    home = Path(tempfile.mkdtemp(prefix="hl-"))
    service = Live(home, retry_delay_s="0.5")
    supervisor = subprocess.Popen(
        [sys.executable, "-m", "hdet_ray.cli.main", "up", "--port", str(service.port), "--supervise"],
        env=service.environment,
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: (home / "token").exists() or None, 180)
        wait_for(lambda: service.ask("GET", "/readyz").is_success or None, 180)
        yield service, supervisor
    finally:
        supervisor.terminate()
        supervisor.wait(120)
        service.hdet("down")
        shutil.rmtree(home, ignore_errors=True)


def test_after_the_heads_death_the_state_is_back_and_the_job_goes_on(
    supervised: tuple[Live, subprocess.Popen[bytes]],
) -> None:
    service, supervisor = supervised
    job_id = service.submit(config={"preset": "tiny", "total_steps": 4000})
    service.wait(job_id, lambda job: job["progress"]["step"] > 300)
    lines = service.lines(job_id)
    head = service.status()["head"]
    os.kill(head["pid"], signal.SIGKILL)
    job = service.wait(job_id, lambda job: job["submission"] == 2, 240)
    assert service.status()["head"]["pid"] != head["pid"]
    lost = next(t for t in job["transitions"] if t["reason"] == "HeadLost")
    assert lost["state"] == "QUEUED"
    job = service.wait_end(job_id, 300)
    assert (job["state"], job["attempt"], job["failures"]) == ("SUCCEEDED", 2, 1)
    assert service.lines(job_id)[: len(lines)] == lines, "output of the lost driver is kept"
    attempts = [
        event["data"]["round"]
        for event in service.ask("GET", f"/v1/jobs/{job_id}/events", params={"limit": 200}).json()["items"]
        if event["type"] == "attempt"
    ]
    assert attempts[0] == 0
    assert attempts[1] > 0, "it went on from its checkpoint"
    supervisor.terminate()
    assert supervisor.wait(120) == 0
    assert service.processes() == []


def test_an_actor_that_ray_has_given_up_is_made_anew(
    supervised: tuple[Live, subprocess.Popen[bytes]],
) -> None:
    service, _ = supervised
    address = service.status()["head"]["address"]
    epoch = service.status()["controller"]["epoch"]
    kill = (
        "import ray; ray.init(address={!r}, namespace='hdet'); "
        "ray.kill(ray.get_actor('hdet-controller'), no_restart=True)"
    )
    environment = {**service.environment, "RAY_AUTH_MODE": "token", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    environment["RAY_AUTH_TOKEN_PATH"] = str(service.home / "ray_token")
    subprocess.run([sys.executable, "-c", kill.format(address)], env=environment, check=True, timeout=120)
    wait_for(lambda: service.status()["controller"]["epoch"] > epoch or None, 180)
    wait_for(lambda: service.ask("GET", "/readyz").is_success or None, 60)
