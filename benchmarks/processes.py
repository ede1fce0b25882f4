"""The same runs on real processes: Gloo ranks, DistributedDataParallel, and the real `HDETOneCycleLR`.

One group of ranks trains one run after another: starting processes that import torch costs more than a
short run does. Plain one-cycle is torch's own scheduler here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import OneCycleLR

from hdet_ray.core.plan import Plan
from hdet_ray.core.report import RoundReport
from hdet_ray.core.state import ScheduleState
from hdet_ray.exceptions import HDETError
from hdet_ray.optim.scheduler import HDETOneCycleLR
from hdet_ray.workloads import load_workload

_COLLECTIVE_TIMEOUT = timedelta(seconds=300)


@dataclass(frozen=True, slots=True, kw_only=True)
class RealRun:
    """One run to be trained."""

    workload: str
    settings: Any
    """The workload's; with the controller ``plain`` torch's `OneCycleLR` schedules it."""
    dtype: str = "float32"


@dataclass(frozen=True, slots=True, kw_only=True)
class RealOutcome:
    """What came of it, as rank 0 knows it."""

    val_loss: float
    test_loss: float
    weights: Tensor
    """``(P,)``."""
    state: ScheduleState | None
    history: tuple[tuple[Plan, RoundReport], ...]
    failure: str | None


def train_on_ranks(runs: Sequence[RealRun], num_ranks: int) -> list[RealOutcome]:
    """Train runs one after another on one group of Gloo ranks, each a process with one thread."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank_main, args=(num_ranks, list(runs), folder), nprocs=num_ranks, join=True)
        outcomes: list[RealOutcome] = torch.load(Path(folder) / "outcomes.pt", weights_only=False)
    return outcomes


def _rank_main(rank: int, num_ranks: int, runs: Sequence[RealRun], folder: str) -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    store = dist.FileStore(str(Path(folder) / "store"), num_ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=num_ranks, timeout=_COLLECTIVE_TIMEOUT)
    outcomes = [_train(run, rank) for run in runs]
    if rank == 0:
        torch.save(outcomes, Path(folder) / "outcomes.pt")
    dist.barrier()
    dist.destroy_process_group()


def _train(run: RealRun, rank: int) -> RealOutcome:
    module, settings = load_workload(run.workload), run.settings
    task = module.Task(settings)
    dtype = getattr(torch, run.dtype)
    network = task.build_model().to(dtype)
    model = DistributedDataParallel(network)
    optimizer = settings.build_optimizer(model)

    def cast(inputs: Tensor) -> Tensor:
        return inputs.to(dtype) if inputs.is_floating_point() else inputs

    def probe(k: int) -> Tensor:
        inputs, targets = task.probe_batch(k)
        return cross_entropy(network(cast(inputs)), targets)

    scheduler = _scheduler(settings, optimizer, model, probe)
    history: list[tuple[Plan, RoundReport]] = []
    if isinstance(scheduler, HDETOneCycleLR):
        scheduler.on_boundary(lambda event: history.append((event.finished, event.report)))
    failure = None
    try:
        for step in range(settings.total_steps):
            inputs, targets = task.batch(step, rank)
            optimizer.zero_grad()
            loss = cross_entropy(model(cast(inputs)), targets)
            loss.backward()
            optimizer.step()
            if isinstance(scheduler, HDETOneCycleLR):
                scheduler.step(loss)
            else:
                scheduler.step()
    except HDETError as error:  # A search or a run that gave up, on every rank alike.
        failure = type(error).__name__
    losses = {}
    for split in ("val", "test"):
        inputs, targets = task.evaluation(split)
        losses[split] = module.evaluate(network, (cast(inputs), targets))
    return RealOutcome(
        val_loss=losses["val"],
        test_loss=losses["test"],
        weights=torch.cat([p.detach().flatten() for p in network.parameters()]),
        state=scheduler.state if isinstance(scheduler, HDETOneCycleLR) else None,
        history=tuple(history),
        failure=failure,
    )


def _scheduler(settings: Any, optimizer: Any, model: Any, probe: Any) -> HDETOneCycleLR | OneCycleLR:
    if settings.controller == "plain":
        return OneCycleLR(optimizer, max_lr=settings.max_lr, total_steps=settings.total_steps)
    return HDETOneCycleLR(
        optimizer,
        max_lr=settings.max_lr,
        total_steps=settings.total_steps,
        controller=settings.build_controller(),
        model=model,
        probe=probe,
        probe_samples=settings.probe_samples,
        seed=settings.seed,
    )
