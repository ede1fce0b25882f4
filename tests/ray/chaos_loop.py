"""The loop of the chaos run: a small model of bytes, with every sample that every rank sees written down."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import hdet_ray
from hdet_ray.data import ElasticSampler
from hdet_ray.testing import FaultInjector, faults_from_json
from hdet_ray.workloads.byte_lm import Settings, Task, evaluate

NUM_SAMPLES = 32_768
BATCH_SIZE = 16
SYNC_EVERY = 20


def build_data(task: Task) -> TensorDataset:
    """Windows of the text, evenly spaced, and the number of each."""
    text, context = task.text["train"], task.settings.context
    starts = torch.arange(NUM_SAMPLES) * (len(text) - context - 1) // NUM_SAMPLES
    windows = text[starts[:, None] + torch.arange(context + 1)].long()  # (samples, T + 1)
    return TensorDataset(windows[:, :-1], windows[:, -1], torch.arange(NUM_SAMPLES))


def train(config: dict[str, Any]) -> None:
    """``config``: ``total_steps``, ``pace_s`` (a pause a step), ``out`` (folder of what is written down) and
    ``faults`` (what happens, as JSON)."""
    out, total_steps = Path(config["out"]), int(config["total_steps"])
    context = ray.train.get_context()
    rank = context.get_world_rank()
    task = Task(Settings())
    network = task.build_model()
    model = ray.train.torch.prepare_model(network)
    optimizer = torch.optim.AdamW(model.parameters())
    data = build_data(task)
    sampler = ElasticSampler(data, num_replicas=context.get_world_size(), rank=rank)
    loader = DataLoader(
        data, batch_size=BATCH_SIZE, sampler=sampler, generator=torch.Generator().manual_seed(0)
    )

    def probe(k: int) -> Tensor:
        contexts, targets = task.probe_batch(k)
        return cross_entropy(network(contexts), targets)

    scheduler = hdet_ray.HDETOneCycleLR(
        optimizer,
        max_lr=3e-3,
        total_steps=total_steps,
        controller=hdet_ray.Auto(sync_every=SYNC_EVERY),
        model=model,
        probe=probe,
    )
    step = hdet_ray.attach(scheduler, sampler=sampler)
    injector = FaultInjector(faults_from_json(config["faults"]), out / "faults")
    # A group's beginning names it: the newest one that trained a step is the one whose step counts.
    began_s = scheduler.collective.broadcast_object(time.time())
    with (out / f"rank-{rank}-{os.getpid()}.jsonl").open("a", buffering=1, encoding="utf-8") as lines:
        while step < total_steps:
            for contexts, targets, numbers in sampler.batches(loader):
                if step == total_steps:
                    break
                line = _where(scheduler, began_s) | {"samples": numbers.tolist(), "epoch": sampler.epoch}
                lines.write(json.dumps(line) + "\n")
                injector.before_step(scheduler)
                optimizer.zero_grad()
                loss = cross_entropy(model(contexts), targets)
                loss.backward()
                optimizer.step()
                scheduler.step(loss)
                step += 1
                time.sleep(config["pace_s"])
            sampler.set_epoch(sampler.epoch + 1)
    if rank == 0:
        loss = evaluate(network, task.evaluation("test"))
        (out / "final.json").write_text(json.dumps({"test_loss": loss}), encoding="utf-8")


def _where(scheduler: Any, began_s: float) -> dict[str, Any]:
    """This rank's place in the run, and the rate that it steps with."""
    plan, collective = scheduler.plan, scheduler.collective
    at = plan.step + scheduler.iterations - scheduler.state.calls
    return {
        "began_s": began_s,
        "at_s": time.time(),
        "step": scheduler.iterations,
        "round": plan.round,
        "phase": plan.phase,
        "rank": collective.rank,
        "num_ranks": collective.world_size,
        "lr": float(scheduler.optimizer.param_groups[0]["lr"]),
        "planned": hdet_ray.value_at(plan, "lr", 0, collective.replica, at),
    }
