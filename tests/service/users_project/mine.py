"""A project of a user's own, as it is uploaded: its own data, and a dependency of its own.

Each rank writes the rate that its optimizer steps with, so that a test sees what replicas really did.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset
from wavelength import WAVELENGTH  # out of a wheel in the package

import hdet_ray
from hdet_ray.data import ElasticSampler

SAMPLES = 4096
WIDTH = 8


def build_network() -> nn.Module:
    """The same on every rank."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, 16), nn.Tanh(), nn.Linear(16, 1))


def build_data() -> TensorDataset:
    """A noisy wave over random directions."""
    draw = torch.Generator().manual_seed(1)
    inputs = torch.randn(SAMPLES, WIDTH, generator=draw)
    wave = torch.sin(inputs.sum(dim=1, keepdim=True) / WAVELENGTH)
    return TensorDataset(inputs, wave + 0.1 * torch.randn(SAMPLES, 1, generator=draw))


def train(config: dict[str, Any]) -> None:
    """``config``: ``total_steps``, ``pace_s`` (a pause a step), ``trace`` (folder of what ranks write)."""
    context = ray.train.get_context()
    rank, data, network = context.get_world_rank(), build_data(), build_network()
    model = ray.train.torch.prepare_model(network)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    sampler = ElasticSampler(data, num_replicas=context.get_world_size(), rank=rank)
    loader = DataLoader(data, batch_size=16, sampler=sampler, generator=torch.Generator().manual_seed(0))

    def probe(k: int) -> Tensor:
        chosen = torch.arange(64 * k, 64 * (k + 1)) % SAMPLES
        inputs, targets = data[chosen]
        return mse_loss(network(inputs), targets)

    scheduler = hdet_ray.HDETOneCycleLR(
        optimizer, max_lr=1e-3, total_steps=config["total_steps"], model=model, probe=probe
    )
    step = hdet_ray.attach(scheduler, sampler=sampler)
    with (Path(config["trace"]) / f"rank-{rank}.jsonl").open("a", encoding="utf-8") as trace:
        while step < config["total_steps"]:
            for inputs, targets in loader:
                if step == config["total_steps"]:
                    break
                lr = optimizer.param_groups[0]["lr"]
                used = {"step": step, "round": scheduler.plan.round, "lr": lr, "at_s": time.monotonic()}
                trace.write(json.dumps(used) + "\n")
                trace.flush()
                optimizer.zero_grad()
                loss = mse_loss(model(inputs), targets)
                loss.backward()
                optimizer.step()
                scheduler.step(loss)
                step += 1
                time.sleep(config["pace_s"])
            sampler.set_epoch(sampler.epoch + 1)
