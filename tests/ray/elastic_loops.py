"""The loop of the elastic tests: it writes down what every rank does at every step, as it does it."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import ray.train
import torch
from torch import nn

import hdet_ray
from hdet_ray.core.plan import centre_rate

ROUND_STEPS = 5
STEP_S = 0.02
"""A step's pace, so that a test has time to change the cluster."""
MAX_LR = 1e-2


def train(config: dict[str, Any]) -> int:
    """Train until ``stop`` exists in ``out``, or the schedule's ``total_steps`` are done.

    ``out``: folder for what is written down. ``controller``: the scheduler's.
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
    step = hdet_ray.attach(scheduler)
    collective = scheduler.collective
    name = f"{collective.num_replicas}x{collective.ranks_per_replica}-{rank}-{os.getpid()}.jsonl"
    draw = torch.Generator().manual_seed(1000 * rank + step)
    with (out / name).open("a", buffering=1) as lines:
        while step < config["total_steps"]:
            lines.write(json.dumps(_values(scheduler, context) | {"at_s": time.time()}) + "\n")
            _harm(config, rank, step, out)
            x = torch.randn(8, 4, generator=draw)
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


def _harm(config: dict[str, Any], rank: int, step: int, out: Path) -> None:
    """Send this process a signal, once in the run."""
    harm = config.get("harm")
    if harm is None or (rank, step) != (harm["rank"], harm["step"]) or (out / "harmed").exists():
        return
    (out / "harmed").write_text(json.dumps({"pid": os.getpid(), "at_s": time.time()}))
    os.kill(os.getpid(), getattr(signal, harm["signal"]))


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
        "replicas": plan.num_replicas,
        "world_size": context.get_world_size(),
        "torch_world_size": torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1,
        "lr": float(group["lr"]),
        "planned": hdet_ray.value_at(plan, "lr", 0, replica, at),
        "momentum": float(group["betas"][0]),
        "planned_momentum": hdet_ray.value_at(plan, "momentum", 0, replica, at),
        "base": centre_rate(plan, 0, at),
    }
