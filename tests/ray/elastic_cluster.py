"""A Ray cluster whose nodes come and go: several raylets on one machine, in a folder of their own."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import ray
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DrainNodeReason

from hdet_ray.testing import ClusterNodes
from hdet_service.head import free_ports

ROOT = Path(__file__).resolve().parents[2]


class ElasticCluster:
    """A head that runs the driver and Ray's controller, and worker nodes of a given number of CPUs.

    Args:
        dashboard_port: Of Ray's dashboard, which takes jobs; None starts none.
    """

    def __init__(self, dashboard_port: int | None = None) -> None:
        self._dashboard: dict[str, Any] = {"include_dashboard": dashboard_port is not None}
        if dashboard_port is not None:
            self._dashboard["dashboard_port"] = dashboard_port

    def __enter__(self) -> ElasticCluster:
        self._folder = tempfile.mkdtemp(prefix="he-")  # short: Ray puts sockets below it
        self._before = dict(os.environ)
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        os.environ.update(
            RAY_USAGE_STATS_ENABLED="0",
            PYTHONPATH=os.pathsep.join(filter(None, paths)),
            OMP_NUM_THREADS="1",
            RAY_TMPDIR=self._folder,
            RAY_worker_niceness="0",  # on a busy machine a nice worker hardly starts
        )
        Path(self._folder, "ray").mkdir()  # a cluster writes its address there, and expects the folder
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "object_store_memory": 100 << 20,
                # Ray's default is one port for all clusters of a machine, and jobs go to who listens there.
                "dashboard_agent_listen_port": free_ports(1)[0],
                **self._dashboard,
            },
        )
        ray.init(address=self._cluster.address, log_to_driver=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ray.shutdown()
        self._cluster.shutdown()
        os.environ.clear()
        os.environ.update(self._before)
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def address(self) -> str:
        """``host:port`` of the cluster's GCS."""
        found: str = self._cluster.address
        return found

    def add(self, num_cpus: int) -> Any:
        """A new node, ready."""
        return self._cluster.add_node(num_cpus=num_cpus, object_store_memory=100 << 20)

    def nodes(self) -> ClusterNodes:
        """The worker nodes that there are, for `hdet_ray.testing`."""
        return ClusterNodes(self._cluster, object_store_memory=100 << 20)

    def announce_preemption(self, node: Any, in_s: float) -> None:
        """Say that a node will be taken away, as a cloud's notice does."""
        is_accepted, why = ray._raylet.GcsClient(address=self._cluster.address).drain_node(
            node.node_id,
            DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
            "the test takes it",
            int((time.time() + in_s) * 1000),
        )
        assert is_accepted, why

    def remove(self, node: Any, *, gracefully: bool = False) -> None:
        """Take a node away: by SIGKILL, or with notice (SIGTERM)."""
        self._cluster.remove_node(node, allow_graceful=gracefully)

    def controller_log(self) -> str:
        """What Ray's controllers of all runs so far have said, and the workers."""
        logs = Path(self._folder, "ray").glob("session_*/logs/train/*.log")
        return "\n".join(path.read_text() for path in logs)
