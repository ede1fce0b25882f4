"""A loop that reports checkpoints of its own, and not from rank 0: ours travel in them over restarts."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")

import ray.train
import torch
from ray.train import Checkpoint, CheckpointConsistencyMode, RunConfig, ScalingConfig
from torch import nn

import hdet_ray
from hdet_ray.train.checkpoints import load
from hdet_ray.train.trainer import HDETTrainer

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]

ROUND_STEPS, TOTAL_STEPS = 5, 60
STOPS = (20, 40, 60)
WRITER = 1


def train(config: dict[str, Any]) -> None:
    """Until ``stop``. The last rank reports a checkpoint just after each boundary."""
    rank = ray.train.get_context().get_world_rank()
    torch.manual_seed(3)
    model = ray.train.torch.prepare_model(nn.Linear(2, 1))
    optimizer = torch.optim.SGD(model.parameters())
    scheduler = hdet_ray.HDETOneCycleLR(
        optimizer,
        max_lr=0.1,
        total_steps=TOTAL_STEPS,
        controller=hdet_ray.Fixed(alpha=1 / 9, sync_every=ROUND_STEPS),
        model=model,
    )
    step = hdet_ray.attach(scheduler)
    (Path(config["out"]) / f"began-{config['stop']}-{rank}").write_text(str(step))
    while step < config["stop"]:
        loss = model(torch.ones(4, 2)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step(loss)
        step += 1
        if scheduler.is_boundary:
            _report(step if rank == WRITER else None)


def _report(step: int | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = None
        if step is not None:
            Path(folder, "theirs.txt").write_text(str(step))
            checkpoint = Checkpoint.from_directory(folder)
        ray.train.report({}, checkpoint=checkpoint)
    ray.train.get_all_reported_checkpoints(CheckpointConsistencyMode.COMMITTED)


def test_ours_go_on_travelling_with_a_rank_that_is_not_the_first(tmp_path: Path) -> None:
    for stop in STOPS:
        result = HDETTrainer(
            train,
            train_loop_config={"stop": stop, "out": str(tmp_path)},
            scaling_config=ScalingConfig(num_workers=2),
            run_config=RunConfig(name="run", storage_path=str(tmp_path / "stored")),
        ).fit()
        assert result.checkpoint is not None
        ours = load(Path(result.checkpoint.path) / "hdet")
        assert Path(result.checkpoint.path, "theirs.txt").read_text() == str(stop)
        assert ours.manifest.step == stop
        assert [bool(state["reports_checkpoints"]) for state in ours.ranks] == [False, True]
    began = {stop: {(tmp_path / f"began-{stop}-{rank}").read_text() for rank in (0, 1)} for stop in STOPS}
    assert began == {20: {"0"}, 40: {"20"}, 60: {"40"}}
