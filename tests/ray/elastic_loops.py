"""The loop of the elastic tests: it writes down what every rank does at every step, as it does it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import ray.train
import torch
from torch import nn

import hdet_ray
from hdet_ray.core.plan import centre_rate
from hdet_ray.data import ElasticSampler
from hdet_ray.testing import FaultInjector

ROUND_STEPS = 5
STEP_S = 0.02
"""A step's pace, so that a test has time to change the cluster."""
MAX_LR = 1e-2
NUM_SAMPLES, BATCH_SIZE = 1920, 8


def train(config: dict[str, Any]) -> int:
    """Train until ``stop`` exists in ``out``, or the schedule's ``total_steps`` are done.

    ``out``: folder for what is written down. ``controller``: the scheduler's. ``faults``: what happens.
    """
    out = Path(config["out"])
    context = ray.train.get_context()
    rank = context.get_world_rank()
    torch.manual_seed(7)
    model = ray.train.torch.prepare_model(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)))
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = hdet_ray.HDETOneCycleLR(
        optimizer, MAX_LR, total_steps=config["total_steps"], controller=config["controller"], model=model
    )
    sampler = ElasticSampler(
        range(NUM_SAMPLES), num_replicas=context.get_world_size(), rank=rank, drop_last=True
    )
    step = hdet_ray.attach(scheduler, sampler=sampler)
    began_s = scheduler.collective.broadcast_object(time.time())
    collective = scheduler.collective
    name = f"{collective.num_replicas}x{collective.ranks_per_replica}-{rank}-{os.getpid()}.jsonl"
    injector = FaultInjector(config.get("faults", ()), out / "faults")
    data = torch.randn(NUM_SAMPLES, 4, generator=torch.Generator().manual_seed(1))
    batches = _batches(sampler)
    with (out / name).open("a", buffering=1) as lines:
        while step < config["total_steps"]:
            epoch, samples = next(batches)
            seen = {"began_s": began_s, "at_s": time.time(), "epoch": epoch, "samples": samples}
            lines.write(json.dumps(_values(scheduler, context) | seen) + "\n")
            injector.before_step(scheduler)
            x = data[samples]
            loss = nn.functional.mse_loss(model(x), x.sum(1, keepdim=True).tanh())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step(loss)
            step += 1
            time.sleep(STEP_S)
            if scheduler.is_boundary and collective.broadcast_object((out / "stop").exists()):
                break
    return step


def _batches(sampler: ElasticSampler) -> Iterator[tuple[int, list[int]]]:
    """One epoch after another: its number, and a batch of samples."""
    epoch = sampler.epoch
    while True:
        sampler.set_epoch(epoch)
        indices = iter(sampler)
        while batch := list(islice(indices, BATCH_SIZE)):
            yield epoch, batch
        epoch += 1


def _values(scheduler: Any, context: Any) -> dict[str, Any]:
    """What the optimizer has, what the schedule says, and where this rank stands."""
    plan, replica = scheduler.plan, scheduler.collective.replica
    at = plan.step + scheduler.iterations - scheduler.state.calls
    group = scheduler.optimizer.param_groups[0]
    return {
        "step": scheduler.iterations,
        "round": plan.round,
        "phase": plan.phase,
        "replica": replica,
        "rank": scheduler.collective.rank,
        "num_ranks": scheduler.collective.world_size,
        "replicas": plan.num_replicas,
        "world_size": context.get_world_size(),
        "torch_world_size": torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1,
        "lr": float(group["lr"]),
        "planned": hdet_ray.value_at(plan, "lr", 0, replica, at),
        "momentum": float(group["betas"][0]),
        "planned_momentum": hdet_ray.value_at(plan, "momentum", 0, replica, at),
        "base": centre_rate(plan, 0, at),
    }
