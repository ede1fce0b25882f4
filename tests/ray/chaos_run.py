"""A service on a cluster of several nodes, a job on it, and everything that is done to them.

What workers can't do to themselves is done here: nodes, the controller and the driver are killed, and an
operator sends overrides all the while.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from hdet_ray.testing import ClusterNodes, DriverFaults, Fault, faults_to_json, newest_progress
from hdet_service.head import free_ports
from tests.ray.elastic_cluster import ElasticCluster
from tests.service.live import Live, wait_for

LOOP = "tests.ray.chaos_loop:train"
NUM_NODES = 3
"""Of one CPU each: a worker on each."""
SETTINGS = {"retry_delay_s": "0.5", "retry_delay_max_s": "1", "tick_s": "0.5"}
_END_S = 3000.0


class FlappingNodes:
    """Nodes of one CPU; one that is taken away comes back after a while, as a node that flaps."""

    def __init__(self, nodes: ClusterNodes, away_s: float) -> None:
        self._nodes, self._away_s = nodes, away_s

    def add(self, num_cpus: int) -> None:
        """A node more."""
        self._nodes.add(num_cpus)

    def remove(self, number: int, *, is_graceful: bool) -> None:
        """Take one away and, in time, put another in its place."""
        self._nodes.remove(number, is_graceful=is_graceful)
        time.sleep(self._away_s)
        self.add(1)


class Chaos:
    """A service that joined a cluster.

    Args:
        service: Up.
        nodes: Of the cluster.
        folder: For what runs write down.
    """

    def __init__(self, service: Live, nodes: FlappingNodes, folder: Path) -> None:
        self.service, self.nodes, self.folder = service, nodes, folder

    def submit(self, name: str, total_steps: int, pace_s: float, faults: Sequence[Fault] = ()) -> str:
        """Start a run; returns its job's id."""
        out = self.folder / name
        out.mkdir()
        config = {
            "out": str(out),
            "total_steps": total_steps,
            "pace_s": pace_s,
            "faults": faults_to_json(faults),
        }
        return self.service.submit(
            name=name,
            entrypoint=LOOP,
            config=config,
            replicas={"min": 2, "max": NUM_NODES},
            max_failures=1000 if faults else 0,
            checkpoint={"sync": True},  # else an upload under way costs a round more
        )

    def endure(self, job_id: str, name: str, faults: Sequence[Fault]) -> tuple[dict[str, Any], list[str]]:
        """Do what is done from outside, until the job has ended.

        Returns:
            The job, and the ids of the overrides that were accepted.
        """
        folder = self.folder / name / "faults"
        own = {"kill_controller": self.kill_controller, "kill_driver": self.kill_driver}
        doing = DriverFaults(faults, folder, nodes=self.nodes, own=own)
        with Operator(self.service, job_id) as operator, doing:
            job = self.service.wait_end(job_id, _END_S)
        return job, operator.accepted

    def kill_controller(self) -> None:
        """SIGKILL, and wait until it is back: else the next one would find no process."""
        os.kill(self.service.status()["controller"]["pid"], signal.SIGKILL)
        wait_for(self._is_ready, 60)

    def kill_driver(self) -> None:
        """SIGKILL to the process that steers the job; where a new one is just starting, to that."""
        driver = wait_for(lambda: next(iter(self.service.drivers()), None), 120)
        with contextlib.suppress(ProcessLookupError):
            os.kill(driver.pid, signal.SIGKILL)

    def progress(self, name: str) -> tuple[int, int] | None:
        """Step and round that a run is at."""
        return newest_progress(self.folder / name / "faults")

    def _is_ready(self) -> bool | None:
        return httpx.get(f"{self.service.url}/readyz", timeout=1.0).status_code == 200 or None


class Operator:
    """Somebody who keeps the rate where the search left it: a NaN in a shared round lowers it by design."""

    def __init__(self, service: Live, job_id: str) -> None:
        self._service, self._path = service, f"/v1/jobs/{job_id}/schedule"
        self.accepted: list[str] = []
        self._wanted: float | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Operator:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(1.0):
            with contextlib.suppress(httpx.HTTPError, KeyError, ValueError):  # it may be starting anew
                self._look()

    def _look(self) -> None:
        answer = self._service.ask("GET", self._path)
        schedule = answer.json()
        pending = [each for each in schedule["overrides"] if each["state"] == "pending"]
        if schedule["phase"] != "train" or pending:
            return
        peak = schedule["peak"]["lr"]["0"]
        self._wanted = self._wanted or peak
        if abs(math.log(self._wanted / peak)) < 0.01:
            return
        asked = {"hparam": "lr", "op": "scale", "value": self._wanted / peak, "reason": "as the search found"}
        answer = self._service.ask(
            "POST", f"{self._path}/overrides", json=asked, headers={"If-Match": answer.headers["ETag"]}
        )
        if answer.status_code == 202:
            self.accepted.append(answer.json()["id"])


@contextmanager
def chaos(folder: Path, away_s: float = 3.0) -> Iterator[Chaos]:
    """Cluster and service, for the time of the block."""
    home = Path(tempfile.mkdtemp(prefix="hc-"))
    before = dict(os.environ)
    os.environ["HDET_HOME"] = str(home)  # by this the service's processes are known, also on the nodes
    # A job's `python` is the one that the tests run on.
    os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    (dashboard_port,) = free_ports(1)
    try:
        with ElasticCluster(dashboard_port) as cluster:
            for _ in range(NUM_NODES):
                cluster.add(1)
            nodes = FlappingNodes(cluster.nodes(), away_s)
            service = Live(home, **SETTINGS)
            done = service.hdet("up", "--port", str(service.port), "--address", cluster.address)
            assert done.returncode == 0, done.stderr
            try:
                yield Chaos(service, nodes, folder)
            finally:
                service.hdet("down")
    finally:
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(home, ignore_errors=True)
