"""A loop over a Ray dataset that writes down which rows every rank took at which step."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import CheckpointConsistencyMode
from torch import nn

import hdet_ray
from hdet_ray.data import get_dataset_shard

ROUND_STEPS = 3
TOTAL_STEPS = 300


def train(config: dict[str, Any]) -> None:
    """Train until step ``stop``.

    ``out``: folder for what is written down. ``kill``: rank and step at which its process is killed, once.
    """
    out, rank = Path(config["out"]), ray.train.get_context().get_world_rank()
    shard = get_dataset_shard("train")
    torch.manual_seed(7)
    model = ray.train.torch.prepare_model(nn.Linear(1, 1))
    scheduler = hdet_ray.HDETOneCycleLR(
        torch.optim.AdamW(model.parameters()),
        1e-3,
        total_steps=TOTAL_STEPS,
        controller=hdet_ray.Fixed(alpha=1 / 9, sync_every=ROUND_STEPS),
        model=model,
    )
    step = hdet_ray.attach(scheduler, sampler=shard)
    began_s = scheduler.collective.broadcast_object(time.time())
    with (out / f"rank-{rank}-{os.getpid()}.jsonl").open("a", buffering=1) as lines:
        while step < config["stop"]:
            for batch in shard.iter_batches(batch_format="numpy"):
                seen = {
                    "began_s": began_s,
                    "step": step,
                    "round": scheduler.plan.round,
                    "rank": rank,
                    "num_ranks": scheduler.collective.world_size,
                    "replica": scheduler.collective.replica,
                    "epoch": shard.epoch,
                    "samples": batch["id"].tolist(),
                }
                lines.write(json.dumps(seen) + "\n")
                _kill_once(config.get("kill"), rank, step, out / "killed")
                x = torch.tensor(batch["id"], dtype=torch.float32)[:, None]
                loss = model(x / 100).square().mean()
                scheduler.optimizer.zero_grad()
                loss.backward()
                scheduler.optimizer.step()
                scheduler.step(loss)
                if scheduler.is_boundary:
                    # Ray has taken the boundary's checkpoint: none is left out, and a kill finds the newest.
                    ray.train.get_all_reported_checkpoints(CheckpointConsistencyMode.COMMITTED)
                step += 1
                if step >= config["stop"]:
                    break


def _kill_once(where: list[int] | None, rank: int, step: int, done: Path) -> None:
    if where == [rank, step] and not done.exists():
        done.touch()
        os.kill(os.getpid(), signal.SIGKILL)
