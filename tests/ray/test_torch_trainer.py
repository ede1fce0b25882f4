"""A TorchTrainer example of Ray's own kind: two lines changed, one added, and all of it works as before.

It runs on storage that is no local folder to us, so checkpoints and ledger go up and come down.
"""

from __future__ import annotations

import difflib
import inspect
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest
import ray.data
import ray.train
import torch
from ray.train import Checkpoint, Result, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer
from torch import nn

import hdet_ray
from hdet_ray import replay
from hdet_ray.core.replay import read_ledger

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]

EPOCHS, STEPS_PER_EPOCH = 3, 100


def with_torch(config: dict[str, Any]) -> int:
    model = ray.train.torch.prepare_model(nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1)))
    shard = ray.train.get_dataset_shard("train")
    criterion = nn.MSELoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=config["lr"])
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, config["lr"], total_steps=config["steps"])
    start = 0
    for epoch in range(start // STEPS_PER_EPOCH, config["epochs"]):
        for batch in shard.iter_torch_batches(batch_size=8):
            loss = criterion(model(batch["x"].float()), batch["y"].float()[:, None])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if ray.train.get_context().get_world_rank() == 0:
                torch.save(model.module.state_dict(), os.path.join(folder, "model.pt"))
                checkpoint = Checkpoint.from_directory(folder)
            ray.train.report({"loss": loss.item(), "epoch": epoch}, checkpoint=checkpoint)
    return start


def with_hdet(config: dict[str, Any]) -> int:
    model = ray.train.torch.prepare_model(nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1)))
    shard = ray.train.get_dataset_shard("train")
    criterion = nn.MSELoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=config["lr"])
    scheduler = hdet_ray.HDETOneCycleLR(optimizer, config["lr"], total_steps=config["steps"], model=model)
    start = hdet_ray.attach(scheduler)
    for epoch in range(start // STEPS_PER_EPOCH, config["epochs"]):
        for batch in shard.iter_torch_batches(batch_size=8):
            loss = criterion(model(batch["x"].float()), batch["y"].float()[:, None])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step(loss)
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if ray.train.get_context().get_world_rank() == 0:
                torch.save(model.module.state_dict(), os.path.join(folder, "model.pt"))
                checkpoint = Checkpoint.from_directory(folder)
            ray.train.report({"loss": loss.item(), "epoch": epoch}, checkpoint=checkpoint)
    return start


class Recorder(UserCallback):  # type: ignore[misc]
    """Writes down the epochs that Ray's controller hears of."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        with self.path.open("a") as stream:
            stream.write(json.dumps([[m.get("epoch") for m in metrics], checkpoint is not None]) + "\n")


@dataclass(frozen=True)
class Runs:
    folder: Path
    results: list[Result]


@pytest.fixture(scope="module")
def runs(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Two epochs of three; then, under the same name, the rest."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "stored").mkdir()
    size = 2 * 8 * STEPS_PER_EPOCH  # two workers, eight samples each
    rows = [{"x": [i / size, (i * 7 % size) / size], "y": i / size} for i in range(size)]
    results = []
    for epochs in (2, 3):
        trainer = TorchTrainer(
            with_hdet,
            train_loop_config={"lr": 1e-3, "epochs": epochs, "steps": EPOCHS * STEPS_PER_EPOCH},
            scaling_config=ScalingConfig(num_workers=2),
            datasets={"train": ray.data.from_items(rows)},
            run_config=RunConfig(
                name="example",
                storage_path="runs",
                storage_filesystem=pafs.SubTreeFileSystem(str(folder / "stored"), pafs.LocalFileSystem()),
                callbacks=[Recorder(folder / "seen.jsonl")],
            ),
        )
        results.append(trainer.fit())
    return Runs(folder, results)


def test_two_lines_change_and_one_goes_another_way() -> None:
    before, after = (inspect.getsource(f).splitlines()[1:] for f in (with_torch, with_hdet))
    changed = [line for line in difflib.ndiff(before, after) if line.startswith("+ ")]
    assert [line.split("=")[0].strip("+ ") for line in changed] == [
        "scheduler",
        "start",
        "scheduler.step(loss)",
    ]


def test_the_users_metrics_and_files_are_the_results(runs: Runs) -> None:
    result = runs.results[1]
    assert result.metrics["epoch"] == 2
    assert result.metrics["hdet/step"] == EPOCHS * STEPS_PER_EPOCH
    with result.checkpoint.as_directory() as folder:
        assert torch.load(os.path.join(folder, "model.pt"), weights_only=True)["0.weight"].shape == (8, 2)


def test_the_users_callback_hears_each_epoch_from_every_worker(runs: Runs) -> None:
    seen = [json.loads(line) for line in (runs.folder / "seen.jsonl").read_text().splitlines()]
    assert [epochs for epochs, _ in seen if epochs[0] is not None] == [[0, 0], [1, 1], [2, 2]]


def test_the_second_run_goes_on_where_the_first_one_ended(runs: Runs) -> None:
    assert [result.return_value for result in runs.results] == [0, 2 * STEPS_PER_EPOCH]


def test_the_ledger_lies_in_the_runs_storage_and_replays(runs: Runs) -> None:
    lines = (runs.folder / "stored" / "runs" / "example" / "hdet_ledger.jsonl").read_text().splitlines()
    ledger = read_ledger(lines)
    assert ledger.items[-1].attempt == 2
    assert replay(ledger).departure is None
