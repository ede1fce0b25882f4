"""What each of the demo's workers runs: three training runs, one after another, in one worker group.

Starting workers takes longer than training this model, so the three share them. Each starts with a fresh
model from the same seed and sees the same batches.
"""

from __future__ import annotations

import math
import time
from typing import Any

import ray.train
import ray.train.torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from hdet_ray import HDETOneCycleLR, LocalControl
from hdet_ray.workloads.byte_lm import Settings, Task, evaluate


def train_arms(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Train the arms in turn.

    Args:
        config: ``{"arms": [{"settings": …, "ledger": path}, …]}``.

    Returns:
        One dict an arm: ``test_loss`` and ``val_loss`` (nats per byte; None where not finite), ``train_s``.
    """
    return [_train(Settings.from_config(arm["settings"]), arm["ledger"]) for arm in config["arms"]]


def _train(settings: Settings, ledger: str) -> dict[str, Any]:
    rank = ray.train.get_context().get_world_rank()
    task = Task(settings)
    network = task.build_model()
    model = ray.train.torch.prepare_model(network)
    optimizer = settings.build_optimizer(model)

    def probe(k: int) -> Tensor:
        contexts, targets = task.probe_batch(k)
        return cross_entropy(network(contexts), targets)

    scheduler = HDETOneCycleLR(
        optimizer,
        max_lr=settings.max_lr,
        total_steps=settings.total_steps,
        controller=settings.build_controller(),
        model=model,
        probe=probe,
        probe_samples=settings.probe_samples,
        seed=settings.seed,
        control=LocalControl(ledger=ledger),
    )
    started_s = time.monotonic()
    for step in range(settings.total_steps):
        contexts, targets = task.batch(step, rank)
        optimizer.zero_grad()
        loss = cross_entropy(model(contexts), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        scheduler.step(loss)
    train_s = time.monotonic() - started_s
    losses = {f"{split}_loss": evaluate(network, task.evaluation(split)) for split in ("val", "test")}
    return {name: x if math.isfinite(x) else None for name, x in losses.items()} | {"train_s": train_s}
