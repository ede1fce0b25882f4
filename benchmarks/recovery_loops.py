"""What runs inside Ray for `benchmarks/recovery.py`: two training loops, and a clock in Ray's controller.

Each process appends lines of JSON to a file of its own, with the time on this machine's one clock.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.train import Checkpoint
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from torch import nn

import hdet_ray
from hdet_ray.config import Fixed

ROUND_STEPS = 25
STEP_S = 0.02
"""A step's pace: longer than what it computes, so that all sides train alike."""
TOTAL_STEPS = 1_000_000
MAX_LR = 1e-3
WIDTH = 256


class Lines:
    """Appends lines to this process's file.

    Args:
        folder: Where it lies.
        name: What it begins with.
    """

    def __init__(self, folder: str, name: str) -> None:
        self._stream = Path(folder, f"{name}-{os.getpid()}.jsonl").open("a", buffering=1)  # noqa: SIM115

    def write(self, what: str, **fields: Any) -> None:
        """One line, now."""
        self._stream.write(
            json.dumps({"what": what, "at_s": time.time(), "pid": os.getpid(), **fields}) + "\n"
        )


class Timeline(WorkerGroupCallback, ControllerCallback):
    """Writes down what Ray's controller does, and when.

    Args:
        folder: Where.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        if type(previous_state) is not type(current_state):
            self._write(type(current_state).__name__)

    def before_worker_group_start(self, worker_group_context: Any) -> None:
        self._write("group_starts", world=worker_group_context.num_workers)

    def after_worker_group_start(self, worker_group: Any) -> None:
        self._write("group_started")

    def after_worker_group_shutdown(self, worker_group_context: Any) -> None:
        self._write("group_ended")

    def _write(self, what: str, **fields: Any) -> None:
        Lines(self._folder, "controller").write(what, **fields)


def train_with_hdet(config: dict[str, Any]) -> None:
    """Ours: fan-out around a fixed schedule, a checkpoint at each boundary."""
    lines, rank = _entered(config)
    model, optimizer = _model_and_optimizer()
    scheduler = hdet_ray.HDETOneCycleLR(
        optimizer,
        MAX_LR,
        total_steps=TOTAL_STEPS,
        controller=Fixed(alpha=1 / 9, sync_every=ROUND_STEPS),
        model=model,
    )
    step = hdet_ray.attach(scheduler)
    lines.write("restored", rank=rank, step=step)
    while True:
        loss = _update(model, optimizer)
        scheduler.step(loss)
        step += 1
        _stepped(lines, rank, step)
        if scheduler.is_boundary and scheduler.collective.broadcast_object(_is_stopped(config)):
            return


def train_plainly(config: dict[str, Any]) -> None:
    """The same as users of TorchTrainer write it: torch's OneCycleLR, and a report with a checkpoint."""
    lines, rank = _entered(config)
    model, optimizer = _model_and_optimizer()
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, MAX_LR, total_steps=TOTAL_STEPS)
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    step = 0
    if (newest := ray.train.get_checkpoint()) is not None:
        with newest.as_directory() as folder:
            saved = torch.load(Path(folder, "state.pt"), weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        step = saved["step"]
    lines.write("restored", rank=rank, step=step)
    while True:
        _update(model, optimizer)
        scheduler.step()
        step += 1
        _stepped(lines, rank, step)
        if step % ROUND_STEPS == 0:
            with tempfile.TemporaryDirectory() as folder:
                checkpoint = None
                if rank == 0:
                    state = {name: part.state_dict() for name, part in parts.items()} | {"step": step}
                    torch.save(state, Path(folder, "state.pt"))
                    checkpoint = Checkpoint.from_directory(folder)
                ray.train.report({"step": step}, checkpoint=checkpoint)
            stopped = [_is_stopped(config)]
            dist.broadcast_object_list(stopped)
            if stopped[0]:
                return


def _entered(config: dict[str, Any]) -> tuple[Lines, int]:
    context = ray.train.get_context()
    rank = context.get_world_rank()
    lines = Lines(config["out"], "worker")
    began_at_s = psutil.Process().create_time()
    lines.write("entered", rank=rank, world=context.get_world_size(), process_began_at_s=began_at_s)
    return lines, rank


def _model_and_optimizer() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(7)
    net = nn.Sequential(nn.Linear(64, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 64))
    model = ray.train.torch.prepare_model(net)
    return model, torch.optim.AdamW(model.parameters())


def _update(model: nn.Module, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    x = torch.randn(8, 64)
    loss = nn.functional.mse_loss(model(x), x.tanh())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    time.sleep(STEP_S)
    return loss


def _stepped(lines: Lines, rank: int, step: int) -> None:
    if rank == 0:  # its gradients are all ranks': it steps when all have
        lines.write("step", step=step, world=ray.train.get_context().get_world_size())


def _is_stopped(config: dict[str, Any]) -> bool:
    return Path(config["out"], "stop").exists()
