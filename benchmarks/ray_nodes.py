"""A Ray cluster whose nodes come and go: a raylet each, all on this machine, in a folder of their own."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.cluster_utils import Cluster

ROOT = Path(__file__).resolve().parent.parent
_STORE_BYTES = 100 << 20


class RayNodes:
    """Worker nodes beside a head that runs nothing but the driver and Ray's controllers.

    Args:
        cluster: Ray's.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def add(self, *, is_awaited: bool = True) -> Any:
        """A new node of one CPU, ready unless it is not awaited."""
        return self._cluster.add_node(wait=is_awaited, num_cpus=1, object_store_memory=_STORE_BYTES)

    def kill(self, node: Any) -> None:
        """SIGKILL to all of the node's processes that Ray started it with; its workers follow."""
        self._cluster.remove_node(node, allow_graceful=False)

    def stop(self, node: Any) -> None:
        """SIGTERM: the node says good-bye to the cluster and goes."""
        self._cluster.remove_node(node, allow_graceful=True)


def cpu_s_of_idle_processes() -> float:
    """CPU seconds that worker processes which wait for work have used so far: importing, mostly."""
    total = 0.0
    for process in psutil.process_iter(["cmdline", "cpu_times"]):
        command = process.info["cmdline"] or [""]
        is_starting = any(word.endswith("default_worker.py") for word in command)
        if is_starting or command[0].startswith("ray::IDLE"):
            total += process.info["cpu_times"].user + process.info["cpu_times"].system
    return total


@contextmanager
def ray_nodes() -> Iterator[RayNodes]:
    """A cluster with a head of no CPU; what it sets in the environment is put back."""
    folder = tempfile.mkdtemp(prefix="hb-")  # short: Ray puts sockets below it
    before = dict(os.environ)
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    os.environ.update(
        RAY_USAGE_STATS_ENABLED="0",
        PYTHONPATH=os.pathsep.join(filter(None, paths)),
        OMP_NUM_THREADS="1",
        RAY_TMPDIR=folder,
    )
    Path(folder, "ray").mkdir()  # a cluster writes its address there, and expects the folder
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": _STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        ray.init(address=cluster.address, log_to_driver=False)
        yield RayNodes(cluster)
    finally:
        ray.shutdown()
        cluster.shutdown()
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(folder, ignore_errors=True)
