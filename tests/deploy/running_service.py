"""A real service, as `hdet up` starts it, with a home, a port and an end of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hdet_service.client import HDETClient
from tests.deploy.observed import ROOT
from tests.deploy.prometheus_server import free_port


@contextmanager
def service(home: Path) -> Iterator[HDETClient]:
    """The service is up inside; `hdet down` ends it."""
    port = free_port()
    environment = {
        **os.environ,
        "HDET_HOME": str(home),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "service")]),
        "OMP_NUM_THREADS": "1",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    try:
        _hdet(environment, "up", "--port", str(port))
        token = (home / "token").read_text(encoding="utf-8").strip()
        with HDETClient(f"http://127.0.0.1:{port}", token) as client:
            yield client
    finally:
        _hdet(environment, "down")


def kill_a_worker(job_id: str) -> int:
    """``kill -9`` to one of a job's training processes.

    Returns:
        Its process id.

    Raises:
        LookupError: the job has none on this machine.
    """
    for process in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)):
        try:
            name = (process / "cmdline").read_bytes().decode(errors="replace")
            environment = (process / "environ").read_bytes()
        except OSError:  # it has ended meanwhile
            continue
        if "RayTrainWorker" in name and f"HDET_JOB_ID={job_id}".encode() in environment:
            os.kill(int(process.name), signal.SIGKILL)
            return int(process.name)
    raise LookupError(f"no training process of job {job_id} runs here")


def _hdet(environment: dict[str, str], *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hdet_ray.cli.main", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300.0,
    )
    if done.returncode != 0:
        raise RuntimeError(
            f"hdet {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        )
