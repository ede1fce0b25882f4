"""The loop that the tests of this folder run: everything that a resumed run could get wrong is in it.

Two parameter groups, BatchNorm's buffers, dropout (random state), an epoch in random order (sampler).
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import CheckpointConsistencyMode
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hdet_ray
from hdet_ray.data import ElasticSampler

TOTAL_STEPS = 400


def build_model() -> nn.Sequential:
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.1), nn.Linear(16, 1))


def build_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    parameters = list(model.parameters())
    return torch.optim.AdamW([{"params": parameters[:2]}, {"params": parameters[2:]}])


def make_data(seed: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 6, generator=draw)
    return x, torch.tanh(x @ torch.linspace(-1, 1, 6)[:, None]) + 0.1 * torch.randn(size, 1, generator=draw)


def train(config: dict[str, Any]) -> None:
    """Train, and write down for each rank and step what ``values`` says of it.

    ``controller``, ``max_lr``: the scheduler's. ``out``: a folder for what is written down.
    ``stop``: the step after which the loop returns. ``kill``: rank and step of the first attempt's end.
    """
    rank = ray.train.get_context().get_world_rank()
    model = build_model()
    ddp = ray.train.torch.prepare_model(model)
    optimizer = build_optimizer(ddp)
    sampler = ElasticSampler(range(144), seed=3)
    loader = DataLoader(
        TensorDataset(*make_data(1, 144)),
        batch_size=4,
        sampler=sampler,
        generator=torch.Generator(),  # else each start of an epoch draws from the global random state
    )

    def probe(k: int) -> torch.Tensor:
        x, y = make_data(1000 + k, 64)
        return nn.functional.mse_loss(model(x), y)

    scheduler = hdet_ray.HDETOneCycleLR(
        optimizer,
        max_lr=config.get("max_lr", [3e-3, 1e-3]),
        total_steps=TOTAL_STEPS,
        controller=config["controller"],
        model=ddp,
        probe=probe,
        probe_samples=64,
        seed=5,
    )
    start_step = hdet_ray.attach(scheduler, sampler=sampler)
    if start_step == 0:
        torch.manual_seed(100 + rank)  # each rank drops out its own
    seen: list[dict[str, Any]] = []
    step, epoch = start_step, sampler.epoch
    stop = config.get("stop") or TOTAL_STEPS
    while step < stop:
        sampler.set_epoch(epoch)
        for x, y in loader:
            if start_step == 0 and config.get("kill") == [rank, step]:
                os.kill(os.getpid(), signal.SIGKILL)
            seen.append(values(scheduler, step))
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(ddp(x), y)
            loss.backward()
            optimizer.step()
            scheduler.step(loss)
            if scheduler.is_boundary:
                # Ray has taken the boundary's checkpoint: none is left out, and a kill finds the newest.
                ray.train.get_all_reported_checkpoints(CheckpointConsistencyMode.COMMITTED)
            step += 1
            if step >= stop:
                break
        epoch += 1
    if "out" in config:
        name = f"{scheduler.collective.world_size}-{rank}-{start_step}.json"
        (Path(config["out"]) / name).write_text(json.dumps(seen))


def values(scheduler: Any, step: int) -> dict[str, Any]:
    """What the optimizer does at this step, and what the schedule says that it should."""
    plan, replica = scheduler.plan, scheduler.collective.replica
    at = plan.step + scheduler.iterations - scheduler.state.calls
    groups = scheduler.optimizer.param_groups
    return {
        "step": step,
        "phase": plan.phase,
        "replica": replica,
        "lr": [group["lr"] for group in groups],
        "planned": [hdet_ray.value_at(plan, "lr", g, replica, at) for g in range(len(groups))],
        "base": [plan.values[("lr", g)][replica] for g in range(len(groups))],
    }
