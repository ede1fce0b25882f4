"""What watches over a run: that the storage is one place, that a rank which hangs is named, that replicas
stay equal, and that a node which is about to go finds the run saved."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import ray
import ray.train
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from hdet_ray.optim.digests import EqualityCheck
from hdet_ray.optim.rounds import BoundaryEvent
from hdet_ray.optim.stepping import ReplicaScheduler
from hdet_ray.train.liveness import node_name
from hdet_ray.train.preemption import PreemptionNotice
from hdet_ray.train.reports import ReportBridge
from hdet_ray.train.storage_check import require_shared_storage

logger = logging.getLogger(__name__)

_LONG_TIMEOUT_S = 600.0
"""A hung rank that stays unseen for longer than this is worth a warning."""


def watch_over(scheduler: ReplicaScheduler, bridge: ReportBridge) -> None:
    """Check what can be checked now, and tie the rest to the run's boundaries; collective.

    Raises:
        ConfigError: nodes don't see the same storage; on every rank.
    """
    collective = scheduler.collective
    if bridge.saves_checkpoints:
        storage = ray.train.get_context().get_storage()
        node = f"{node_name()}/{ray.get_runtime_context().get_node_id()[:8]}"
        require_shared_storage(collective, storage.storage_filesystem, storage.experiment_fs_path, node=node)
        scheduler.on_directive(PreemptionNotice().directive)
    if bridge.liveness is not None:
        bridge.liveness.meet()
        bridge.liveness.progress = lambda: (scheduler.state.round, scheduler.iterations)
    if bridge.digest_every_rounds is not None and collective.world_size > 1:
        check = EqualityCheck(collective, compared_parameters(scheduler))
        scheduler.on_boundary(CheckedRounds(check, bridge.digest_every_rounds))
    timeout_s = _timeout_s()
    if collective.rank == 0 and timeout_s > _LONG_TIMEOUT_S:
        logger.warning(
            "collectives wait %.0f s for a rank that hangs; use HDETTrainer(collective_timeout_s=…), or "
            "TorchConfig(timeout_s=…)",
            timeout_s,
        )


def compared_parameters(scheduler: ReplicaScheduler) -> Mapping[str, Tensor]:
    """The trained parameters by name, without those that DDP was told to leave alone."""
    model = scheduler.model
    if model is None:
        groups = enumerate(scheduler.optimizer.param_groups)
        return {f"group {g}, tensor {i}": p for g, group in groups for i, p in enumerate(group["params"])}
    ignored = model.parameters_to_ignore if isinstance(model, DistributedDataParallel) else ()
    bare = model.module if isinstance(model, DistributedDataParallel) else model
    trained = {id(p) for group in scheduler.optimizer.param_groups for p in group["params"]}
    return {name: p for name, p in bare.named_parameters() if id(p) in trained and name not in ignored}


class CheckedRounds:
    """Compares at every k-th boundary, and at the last one."""

    def __init__(self, check: EqualityCheck, every_rounds: int) -> None:
        self._check = check
        self._every_rounds = every_rounds

    def __call__(self, event: BoundaryEvent) -> None:
        round = event.report.round
        if event.is_last or (round + 1) % self._every_rounds == 0:
            self._check.run(round)


def _timeout_s() -> float:
    """Of the default process group's host collectives; 0 where there is none."""
    if not dist.is_initialized():
        return 0.0
    backend = dist.group.WORLD._get_backend(torch.device("cpu"))  # type: ignore[union-attr]
    return float(backend.options._timeout.total_seconds())
