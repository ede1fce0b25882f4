"""The job that `test_observability.py` watches: a small regression with a sampler, slow enough to watch."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

import hdet_ray
from hdet_ray.data import ElasticSampler

SAMPLES = 4096
WIDTH = 16


def train(config: dict[str, Any]) -> None:
    """``config``: ``total_steps``; ``pace_s``, seconds between steps; ``gate``, a file that holds it up."""
    while Path(config["gate"]).exists():
        time.sleep(0.1)
    torch.manual_seed(0)
    inputs = torch.randn(SAMPLES, WIDTH)
    targets = torch.sin(inputs @ torch.randn(WIDTH, 1)) + 0.3 * torch.randn(SAMPLES, 1)
    network = nn.Sequential(nn.Linear(WIDTH, 32), nn.Tanh(), nn.Linear(32, 1))
    model = ray.train.torch.prepare_model(network)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def probe(k: int) -> Tensor:
        chosen = slice(64 * k % SAMPLES, 64 * k % SAMPLES + 64)
        return mse_loss(network(inputs[chosen]), targets[chosen])

    scheduler = hdet_ray.HDETOneCycleLR(
        optimizer, max_lr=0.05, total_steps=config["total_steps"], model=model, probe=probe
    )
    context = ray.train.get_context()
    data = TensorDataset(inputs, targets)
    sampler = ElasticSampler(data, num_replicas=context.get_world_size(), rank=context.get_world_rank())
    loader = DataLoader(data, batch_size=16, sampler=sampler, generator=torch.Generator().manual_seed(0))

    step = hdet_ray.attach(scheduler, sampler=sampler)
    while step < config["total_steps"]:
        for x, y in loader:
            if step == config["total_steps"]:
                break
            optimizer.zero_grad()
            loss = mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            scheduler.step(loss)
            step += 1
            time.sleep(config["pace_s"])
        sampler.set_epoch(sampler.epoch + 1)
