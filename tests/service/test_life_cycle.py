"""The whole life of a service and of its jobs, on a real Ray."""

from __future__ import annotations

import os
import signal
import socket
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from hdet_service.processes import ProcessId
from tests.service.live import BYTE_LM, Live, live_service, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

LONG = {"config": {"preset": "tiny", "total_steps": 4000}}
"""Long enough to kill something in its middle."""


@pytest.fixture(scope="module")
def service() -> Iterator[Live]:
    with live_service(retry_delay_s="0.5") as running:
        yield running


def test_the_shortest_request_trains_and_succeeds(service: Live) -> None:
    job_id = service.submit()
    rounds = set()

    def look() -> dict[str, object] | None:
        job = service.job(job_id)
        if job["state"] == "RUNNING":
            rounds.add(service.ask("GET", f"/v1/jobs/{job_id}/schedule").json()["round"])
        return job if job["state"] in ("SUCCEEDED", "FAILED") else None

    job = wait_for(look, 400, lambda: service.describe(job_id))
    assert job["state"] == "SUCCEEDED", service.describe(job_id)
    assert len(rounds) > 1
    assert service.job(job_id)["progress"]["step"] == 1500
    states = [transition["state"] for transition in service.job(job_id)["transitions"]]
    assert states == ["QUEUED", "STARTING", "STARTING", "STARTING", "RUNNING", "SUCCEEDED"]
    assert any("TrainController" in line for line in service.lines(job_id))


def test_a_killed_controller_is_back_within_10_s_and_training_does_not_notice(service: Live) -> None:
    job_id = service.submit(**LONG)
    service.wait(job_id, lambda job: job["state"] == "RUNNING" and job["progress"]["step"] > 100)
    before = service.status()["controller"]
    os.kill(before["pid"], signal.SIGKILL)
    killed_s = time.monotonic()
    wait_for(lambda: httpx.get(f"{service.url}/readyz", timeout=1.0).status_code == 200 or None, 60)
    back_s = time.monotonic() - killed_s
    after = service.status()["controller"]
    assert after["epoch"] == before["epoch"] + 1
    assert back_s < 10, f"back after {back_s:.1f} s"
    job = service.wait_end(job_id)
    assert (job["state"], job["attempt"], job["submission"]) == ("SUCCEEDED", 1, 1)
    answer = service.ask("GET", f"/v1/jobs/{job_id}/schedule/history", params={"limit": 200}).json()
    rounds = [item["round"] for item in answer["items"]]
    assert rounds == list(range(len(rounds)))


@pytest.mark.slow
def test_a_killed_driver_is_followed_by_another_that_finishes(service: Live) -> None:
    job_id = service.submit(**LONG)
    service.wait(job_id, lambda job: job["progress"]["step"] > 300)
    (driver,) = service.drivers()
    driver.kill()
    job = service.wait_end(job_id)
    assert job["state"] == "SUCCEEDED", service.describe(job_id)
    assert (job["submission"], job["failures"], job["attempt"]) == (2, 1, 2)
    retried = next(t for t in job["transitions"] if t["reason"] == "DriverLost")
    assert "killed by signal 9" in retried["message"]


def test_an_entrypoint_that_does_not_import_fails_before_any_worker_starts(service: Live) -> None:
    job_id = service.submit(entrypoint="no_such_module:train")
    job = service.wait_end(job_id)
    assert (job["state"], job["reason"]) == ("FAILED", "EntrypointError")
    assert job["message"] == "ModuleNotFoundError: No module named 'no_such_module'"
    assert job["attempt"] == 0


@pytest.mark.slow
def test_a_users_module_runs_with_a_wheel_out_of_its_package(service: Live, tmp_path: Path) -> None:
    wheel, package = tmp_path / "answer-1.0-py3-none-any.whl", tmp_path / "package.zip"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("answer.py", "VALUE = 42\n")
        archive.writestr(
            "answer-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: answer\nVersion: 1.0\n"
        )
    with zipfile.ZipFile(package, "w") as archive:
        archive.write(wheel, wheel.name)
        archive.writestr("mine.py", "import answer\ndef train(config):\n    print('value', answer.VALUE)\n")
        archive.writestr(
            "script.py", "import os, mine, sys\nprint('job', os.environ['HDET_JOB_ID'], sys.argv[1])\n"
        )
    runtime_env = {"working_dir": service.upload(package), "pip": [f"./{wheel.name}"]}
    replicas = {"min": 1, "max": 1}
    as_loop = service.submit(entrypoint="mine:train", config={}, runtime_env=runtime_env, replicas=replicas)
    as_command = service.submit(
        entrypoint="python script.py --x", config={}, runtime_env=runtime_env, replicas=replicas
    )
    assert service.wait_end(as_loop)["state"] == "SUCCEEDED", service.describe(as_loop)
    assert service.wait_end(as_command)["state"] == "SUCCEEDED", service.describe(as_command)
    wait_for(lambda: any("value 42" in line for line in service.lines(as_loop)) or None, 20)
    wait_for(lambda: f"job {as_command} --x" in service.lines(as_command) or None, 20)


@pytest.mark.slow
def test_a_paused_job_goes_on_from_its_checkpoint(service: Live) -> None:
    job_id = service.submit(**LONG)
    service.wait(job_id, lambda job: job["progress"]["step"] > 300)
    assert service.ask("POST", f"/v1/jobs/{job_id}/pause").status_code == 202
    job = service.wait(job_id, lambda job: job["state"] == "PAUSED")
    assert job["message"].startswith("Paused at round")
    step = job["progress"]["step"]
    assert 300 < step < 4000
    assert service.ask("POST", f"/v1/jobs/{job_id}/resume").status_code == 202
    service.wait(job_id, lambda job: job["attempt"] == 2)
    job = service.wait_end(job_id)
    assert (job["state"], job["failures"]) == ("SUCCEEDED", 0)
    history = service.ask(
        "GET", f"/v1/jobs/{job_id}/schedule/history", params={"limit": 200, "all_attempts": "true"}
    ).json()["items"]
    assert len({item["round"] for item in history}) == len(history), "no round was trained twice"


@pytest.mark.slow
def test_a_rollback_goes_on_from_the_checkpoint_of_that_round(service: Live) -> None:
    job_id = service.submit(**LONG, checkpoint={"keep": 50})
    service.wait(job_id, lambda job: job["progress"]["step"] > 1000)
    saved = service.ask("GET", f"/v1/jobs/{job_id}/checkpoints").json()["items"]
    rounds = sorted(item["round"] for item in saved)
    target = rounds[len(rounds) // 2]
    answer = service.ask("POST", f"/v1/jobs/{job_id}/schedule/rollback", json={"round": target})
    assert answer.status_code == 202, answer.text
    service.wait(job_id, lambda job: job["attempt"] == 2)
    job = service.wait_end(job_id)
    assert (job["state"], job["submission"], job["failures"]) == ("SUCCEEDED", 2, 0)
    chain = service.ask("GET", f"/v1/jobs/{job_id}/schedule/history", params={"limit": 200}).json()["items"]
    assert [item["attempt"] for item in chain] == [1] * target + [2] * (len(chain) - target)
    assert [item["round"] for item in chain] == list(range(len(chain)))


@pytest.mark.slow
def test_a_canceled_job_stops_and_its_workers_with_it(service: Live) -> None:
    job_id = service.submit(**LONG)
    service.wait(job_id, lambda job: job["state"] == "RUNNING")
    assert service.ask("POST", f"/v1/jobs/{job_id}/cancel").status_code == 202
    job = service.wait(job_id, lambda job: job["state"] == "CANCELED", 60)
    assert job["reason"] == "Canceled"
    wait_for(lambda: not service.drivers() or None, 20)


def test_a_port_that_is_taken_is_refused_by_name_of_who_holds_it(tmp_path: Path) -> None:
    other = Live(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", other.port))
        taken.listen()
        done = other.hdet("up", "--port", str(other.port))
    assert done.returncode == 4
    assert f"port {other.port} is taken by pid {os.getpid()}" in done.stderr
    assert not other.processes()


def test_down_leaves_no_process_and_the_next_up_finds_the_jobs(service: Live) -> None:
    """The last one of this file: it ends the shared service."""
    job_id = service.submit(name="kept")
    service.wait_end(job_id)
    head = ProcessId.of(service.status()["head"]["pid"])
    service.down()
    assert service.processes() == []
    assert not head.is_alive()
    done = service.hdet("status", "--json")
    assert done.returncode == 3
    service.up()
    assert service.job(job_id)["name"] == "kept"
    assert service.lines(job_id)
    assert BYTE_LM["entrypoint"] == service.job(job_id)["spec"]["entrypoint"]
