"""Warm workers: the next group's processes have started and imported torch before they are needed.

Most of what a restart takes on a healthy node is Python importing torch and Ray Train in every worker (2 to
3 s of CPU each). Ray's raylet keeps idle worker processes and starts them ahead of need when it is asked
(``PrestartWorkers``); an actor that fits one's runtime environment takes it in under a second. So while a
group trains, as many processes wait beside it as it has workers on each node.

It is a saving and no more: whatever fails here is logged, and the run starts its workers cold.
"""

from __future__ import annotations

import importlib
import logging
import os
import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train.v2._internal.execution.callback import WorkerGroupCallback

logger = logging.getLogger(__name__)

SETUP_HOOK = "hdet_ray.train.warm.import_ahead"
_SETUP_HOOK_VARIABLE = "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR"
"""Where Ray reads a job's ``worker_process_setup_hook`` from, in a worker process that starts."""
_MODULES = (
    "torch.distributed",
    "torch._dynamo",  # the first optimizer or disabled function imports it: seconds more
    "ray.train.torch",
    "hdet_ray.train.trainer",
    "hdet_ray.train.attach",
    "hdet_ray.optim.scheduler",
)
_DELAY_S = 5.0
"""The group's own first steps come first."""
_KEEP_ALIVE_S = 7 * 24 * 3600
_CALL_TIMEOUT_S = 10.0


def import_ahead() -> None:
    """Runs in a worker process when it starts, before it knows for what."""
    for module in _MODULES:
        try:
            importlib.import_module(module)
        except Exception:  # the loop's own import will tell: a hook that fails ends the process
            logger.warning("not imported ahead: %s", module, exc_info=True)
            return


def with_setup_hook(worker_runtime_env: Mapping[str, Any]) -> dict[str, Any]:
    """A worker runtime environment whose processes import ahead, unless the user hooks in there too."""
    variables = dict(worker_runtime_env.get("env_vars") or {})
    if "worker_process_setup_hook" in worker_runtime_env or _SETUP_HOOK_VARIABLE in variables:
        return dict(worker_runtime_env)
    return {**worker_runtime_env, "env_vars": variables | {_SETUP_HOOK_VARIABLE: SETUP_HOOK}}


class WarmWorkers(WorkerGroupCallback):
    """Keeps as many warm processes on each node as the group has workers there. Lives in Ray's controller."""

    def __init__(self) -> None:
        self._spare: Counter[str] = Counter()
        """Warm processes on each node, as far as known."""
        self._timer: threading.Timer | None = None

    def before_worker_group_start(self, worker_group_context: Any) -> None:
        self._cancel()

    def after_worker_group_training_start(self, worker_group: Any) -> None:
        workers = Counter(worker.metadata.node_id for worker in worker_group.get_workers())
        # The group took what was there; nodes that it has left may be gone.
        self._spare = Counter({node: max(0, self._spare[node] - taken) for node, taken in workers.items()})
        try:
            environment, job = worker_group.execute_single(0, _own_environment)
        except RayError as error:  # a worker that has died again: Ray's own look will find it
            logger.warning("no warm workers: error=%s", error)
            return
        self._timer = threading.Timer(_DELAY_S, self._fill, [workers, environment, job])
        self._timer.daemon = True
        self._timer.start()

    def before_worker_group_shutdown(self, worker_group: Any) -> None:
        self._cancel()

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _fill(self, wanted: Mapping[str, int], environment: str, job: str) -> None:
        addresses = raylets()
        for node, count in wanted.items():
            missing = count - self._spare[node]
            if missing <= 0 or node not in addresses:
                continue
            try:
                prestart(addresses[node], missing, environment, job)
            except Exception as error:  # Ray's inner interface: it may change, and the run goes on without
                logger.warning("no warm workers: node=%s error=%s", node, error)
                continue  # the node may just have died
            self._spare[node] += missing


def prestart_like(worker: Any, node: str, count: int) -> None:
    """Start worker processes for later on a node that the group is about to use.

    Args:
        worker: Of the group: the new ones shall be like it.
        node: Ray's id of the node.
        count: How many.
    """
    try:
        environment, job = ray.get(worker.execute_async(_own_environment), timeout=_CALL_TIMEOUT_S)
        prestart(raylets()[node], count, environment, job)
    except Exception as error:  # as above: a saving and no more
        logger.warning("no warm workers: node=%s error=%s", node, error)


def prestart(address: tuple[str, int], count: int, environment: str, job: str) -> None:
    """Ask a node to start worker processes for later.

    Args:
        address: Host and port of its raylet.
        count: How many.
        environment: The serialized runtime environment that they are for.
        job: Ray's id of the job, in hexadecimal.
    """
    from ray._private.grpc_utils import init_grpc_channel
    from ray._private.utils import get_runtime_env_info
    from ray.core.generated import common_pb2, node_manager_pb2_grpc
    from ray.core.generated import node_manager_pb2 as messages
    from ray.runtime_env import RuntimeEnv

    channel = init_grpc_channel("{}:{}".format(*address))
    try:
        stub: Any = node_manager_pb2_grpc.NodeManagerServiceStub(channel)  # type: ignore[no-untyped-call]
        info = get_runtime_env_info(RuntimeEnv.deserialize(environment))
        # Ray compares the text: written anew, in another order, it would be another environment.
        info.serialized_runtime_env = environment
        request = messages.PrestartWorkersRequest(  # type: ignore[attr-defined]
            language=common_pb2.PYTHON,  # type: ignore[attr-defined]
            job_id=bytes.fromhex(job),
            runtime_env_info=info,
            keep_alive_duration_secs=_KEEP_ALIVE_S,
            num_workers=count,
        )
        stub.PrestartWorkers(request, timeout=_CALL_TIMEOUT_S)
    finally:
        channel.close()
    logger.info("warm workers: address=%s:%d count=%d driver_pid=%d", *address, count, os.getpid())


def raylets() -> dict[str, tuple[str, int]]:
    """Host and port of the raylet of each node that Ray calls alive."""
    return {
        node["NodeID"]: (node["NodeManagerAddress"], node["NodeManagerPort"])
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    }


def _own_environment() -> tuple[str, str]:
    """Runs in a worker: what its like must have been started with."""
    context: Any = ray.get_runtime_context()
    return context.get_runtime_env_string(), context.get_job_id()
