"""An elastic job through the service, on a real Ray whose nodes come and go."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hdet_service.head import free_ports
from tests.ray.elastic_cluster import ElasticCluster
from tests.service.live import TERMINAL, Live
from tests.service.users import history

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


FIXED = {"controller": "fixed", "alpha": 0.1, "sync_every": 40}
TOTAL_STEPS = 4500


@contextmanager
def joined_service(address: str) -> Iterator[Live]:
    """A service on a cluster that is there already."""
    home = Path(tempfile.mkdtemp(prefix="hl-"))
    service = Live(home, retry_delay_s="0.5")
    try:
        done = service.hdet("up", "--port", str(service.port), "--address", address)
        assert done.returncode == 0, done.stderr
        yield service
    finally:
        service.hdet("down")
        shutil.rmtree(home, ignore_errors=True)


def is_in(*standing: str) -> Any:
    """Whether a job stands there, by state and reason."""
    return lambda job: (job["state"], job["reason"]) == standing


def events_of(service: Live, job_id: str, type: str) -> list[dict[str, Any]]:
    """Data of all its events of a type."""
    found: list[dict[str, Any]] = []
    params: dict[str, Any] = {"limit": 200}
    while True:
        page = service.ask("GET", f"/v1/jobs/{job_id}/events", params=params).json()
        found += [item["data"] for item in page["items"] if item["type"] == type]
        if page["next"] is None:
            return found
        params["cursor"] = page["next"]


def metric(service: Live, job_id: str, name: str, **labels: str) -> float:
    """One value of the job at `/metrics`."""
    wanted = {"run": job_id, **labels}
    inside = ",".join(f'{label}="{wanted[label]}"' for label in sorted(wanted))
    start = f"{name}{{{inside}}} "
    lines = service.ask("GET", "/metrics").text.splitlines()
    return next(float(line.removeprefix(start)) for line in lines if line.startswith(start))


def test_replicas_go_and_come_back_and_the_service_says_so_all_along(monkeypatch: pytest.MonkeyPatch) -> None:
    # A driver's `python` is what the cluster's nodes find: as in a pod, the one that all is installed for.
    monkeypatch.setenv("PATH", os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]]))
    (dashboard_port,) = free_ports(1)
    with ElasticCluster(dashboard_port) as cluster, joined_service(cluster.address) as service:
        nodes = [cluster.add(num_cpus=1) for _ in range(3)]
        job_id = service.submit(
            entrypoint="tests.service.paced_loop:train",
            config={"total_steps": TOTAL_STEPS, "pace_s": 0.02},
            replicas={"min": 2, "max": 3},
            hdet=FIXED,
            max_failures=10,
        )
        trains = service.wait(job_id, lambda job: job["state"] in TERMINAL or job["progress"]["step"] > 200)
        assert trains["state"] == "RUNNING", service.describe(job_id)
        assert service.job(job_id)["replicas"] == {"wanted": 3, "present": 3}

        cluster.remove(nodes.pop())
        job = service.wait(job_id, is_in("DEGRADED", "ReplicaLost"))
        assert job["replicas"]["present"] == 0, "the group restarts"
        job = service.wait(job_id, lambda job: job["replicas"]["present"] == 2)
        assert (job["state"], job["reason"]) == ("DEGRADED", "ReplicaLost")
        assert job["message"].startswith("2 of 3 replicas train."), service.describe(job_id)
        assert metric(service, job_id, "hdet_replicas", state="present") == 2
        service.wait(job_id, lambda job: job["progress"]["step"] > 600)

        cluster.remove(nodes.pop())
        job = service.wait(job_id, is_in("STARTING", "WaitingForResources"))
        job = service.wait(job_id, lambda job: "needs at least 2 workers with 1 CPU each" in job["message"])
        assert job["replicas"]["present"] == 0

        nodes += [cluster.add(num_cpus=1) for _ in range(2)]
        job = service.wait(job_id, lambda job: job["state"] == "RUNNING")
        assert job["replicas"] == {"wanted": 3, "present": 3}
        page = service.ask("GET", "/metrics").text
        assert 'hdet_jobs{state="RUNNING"} 1' in page
        job = service.wait_end(job_id)
        assert job["state"] == "SUCCEEDED", service.describe(job_id)
        assert job["progress"]["step"] == TOTAL_STEPS

        sizes = [(data["from"], data["to"]) for data in events_of(service, job_id, "resize")]
        assert sizes[0] == (3, 2)
        assert sizes[-1] == (2, 3)
        recoveries = events_of(service, job_id, "recovery")
        assert len(recoveries) == len(events_of(service, job_id, "attempt")) - 1
        assert all(data["seconds"] > 0 for data in recoveries)
        assert metric(service, job_id, "hdet_resizes_total", direction="down") >= 1
        assert metric(service, job_id, "hdet_resizes_total", direction="up") >= 1
        assert metric(service, job_id, "hdet_recovery_duration_seconds_count") == len(recoveries)

        rounds = history(service, job_id)
        assert [item["round"] for item in rounds] == list(range(len(rounds)))
        assert {len(item["plan"]["teams"]) for item in rounds} == {2, 3}
        replayed = service.hdet("replay", job_id)
        assert replayed.returncode == 0, replayed.stderr
