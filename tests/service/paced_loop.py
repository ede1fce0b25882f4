"""A small loop that takes its time.

It lies where every process of a test's cluster finds it: nodes that share a machine share the folder of
uploaded packages too, and each takes it away from the others.
"""

from __future__ import annotations

import time
from typing import Any

import ray.train.torch
import torch
from torch.nn.functional import mse_loss

import hdet_ray


def train(config: dict[str, Any]) -> None:
    """``config``: ``total_steps``, and ``pace_s``, a pause a step."""
    torch.manual_seed(0)
    target = torch.randn(8, 1)
    model = ray.train.torch.prepare_model(torch.nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scheduler = hdet_ray.HDETOneCycleLR(
        optimizer, max_lr=0.01, total_steps=config["total_steps"], model=model
    )
    for _ in range(hdet_ray.attach(scheduler), config["total_steps"]):
        inputs = torch.randn(16, 8)
        optimizer.zero_grad()
        loss = mse_loss(model(inputs), inputs @ target)
        loss.backward()
        optimizer.step()
        scheduler.step(loss)
        time.sleep(config["pace_s"])
