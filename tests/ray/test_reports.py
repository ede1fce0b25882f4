"""The user's reports go on as without us, and ours travel along."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray.train
import torch
from ray.train import Checkpoint, Result, RunConfig, ScalingConfig, UserCallback, report
from ray.train.torch import TorchTrainer
from torch import nn

from hdet_ray.train.checkpoints import save
from hdet_ray.train.reports import ReportBridge, StagedCheckpoint, bridge_reports

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]


def staged(bridge: ReportBridge, round: int) -> StagedCheckpoint:
    model = nn.Linear(2, 1)
    result = bridge.new_staged()
    save(
        result.folder,
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        schedule={},
        ranks=[],
        round=round,
        step=round,
    )
    return result


def user_checkpoint(text: str) -> Checkpoint:
    folder = Path(tempfile.mkdtemp())
    (folder / "theirs.txt").write_text(text)
    return Checkpoint.from_directory(folder)


class Recorder(UserCallback):  # type: ignore[misc]
    """Writes down what Ray's controller sees of each report."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        with self.path.open("a") as stream:
            stream.write(json.dumps([metrics[0], checkpoint is not None]) + "\n")


def what_is_found(bridge: ReportBridge) -> dict[str, bool]:
    return {
        "user_finds_one": ray.train.get_checkpoint() is not None,
        "we_find_one": bridge.newest_checkpoint() is not None,
    }


def first_run() -> None:
    rank = ray.train.get_context().get_world_rank()
    bridge = bridge_reports()
    report(what_is_found(bridge))
    report({"loss": 0.5, "epoch": 3})
    bridge.own_metrics = {"hdet/round": 7}
    bridge.publish(staged(bridge, 7) if rank == 0 else None)


def second_run() -> None:
    rank = ray.train.get_context().get_world_rank()
    bridge = bridge_reports()
    report(what_is_found(bridge))
    if rank == 0:
        bridge.stage(staged(bridge, 8))
    bridge.own_metrics = {"hdet/round": 8}
    report(
        {"loss": 0.4},
        checkpoint=user_checkpoint("a") if rank == 0 else None,
        delete_local_checkpoint_after_upload=True,
    )
    report({"loss": 0.3, "user_finds_one": ray.train.get_checkpoint() is not None})


@dataclass(frozen=True)
class Runs:
    results: list[Result]
    seen: list[list[list[Any]]]
    """Per run and report: rank 0's metrics, and whether it brought a checkpoint."""


@pytest.fixture(scope="module")
def runs(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("runs")
    results, seen = [], []
    for index, loop in enumerate([first_run, second_run]):
        path = folder / f"seen-{index}.jsonl"
        trainer = TorchTrainer(
            loop,
            scaling_config=ScalingConfig(num_workers=2),
            run_config=RunConfig(name="run", storage_path=str(folder), callbacks=[Recorder(path)]),
        )
        results.append(trainer.fit())
        seen.append([json.loads(line) for line in path.read_text().splitlines()])
    return Runs(results, seen)


def test_our_report_carries_the_users_newest_metrics_and_hdet_alone(runs: Runs) -> None:
    expected = {"loss": 0.5, "epoch": 3, "hdet/round": 7}
    assert runs.seen[0][1:] == [[{"loss": 0.5, "epoch": 3}, False], [expected, True]]
    assert runs.results[0].metrics == expected


def test_our_checkpoint_is_the_runs_where_the_user_reports_none(runs: Runs) -> None:
    checkpoint = runs.results[0].checkpoint
    assert json.loads((Path(checkpoint.path) / "hdet" / "manifest.json").read_text())["round"] == 7


def test_a_checkpoint_that_is_ours_alone_is_hidden_from_the_users_loop(runs: Runs) -> None:
    assert runs.seen[0][0][0] == {"user_finds_one": False, "we_find_one": False}
    assert runs.seen[1][0][0] == {"user_finds_one": False, "we_find_one": True}


def test_where_the_user_reports_checkpoints_ours_travel_inside_theirs(runs: Runs) -> None:
    folder = Path(runs.results[1].checkpoint.path)
    assert runs.results[1].metrics == {"loss": 0.4, "hdet/round": 8}
    assert (folder / "theirs.txt").read_text() == "a"
    assert json.loads((folder / "hdet" / "manifest.json").read_text())["round"] == 8


def test_the_user_finds_their_own_checkpoint_again(runs: Runs) -> None:
    assert runs.seen[1][2] == [{"loss": 0.3, "user_finds_one": True, "hdet/round": 8}, False]
