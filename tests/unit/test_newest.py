"""Which checkpoint a run goes on from: Ray's list is of the user's taste, ours goes by time."""

from __future__ import annotations

import posixpath
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import ray.train
import torch
from ray.train import Checkpoint

from hdet_ray.exceptions import CheckpointError, RestoreError
from hdet_ray.train.checkpoints import save
from hdet_ray.train.layout import HDET_FOLDER
from hdet_ray.train.newest import NOTHING, find_newest, load_found
from tests.unit.test_storage import checkpoint


class Run:
    """Checkpoints of a run as Ray would list them, best score first."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.listed: list[Checkpoint] = []

    def put(self, time: int, *, is_ours: bool = True) -> Checkpoint:
        folder = self._root / f"checkpoint_2026-01-01_00-00-{time:02}.000000"
        folder.mkdir(parents=True)
        if is_ours:
            checkpoint(folder / HDET_FOLDER, float(time))
        else:
            (folder / "theirs.pt").write_bytes(b"weights")
        self.listed.append(Checkpoint.from_directory(folder))
        return self.listed[-1]

    def chosen(self, newest: Checkpoint | None) -> str | None:
        """The folder that is found where Ray would go on from ``newest``."""
        entries: list[Any] = [SimpleNamespace(checkpoint=each, metrics={}) for each in self.listed]
        with mock.patch.object(ray.train, "get_all_reported_checkpoints", return_value=entries):
            found = find_newest(newest, None)
        return None if found.ours is None else posixpath.dirname(found.ours.path)

    def break_(self, broken: Checkpoint) -> None:
        (Path(broken.path) / HDET_FOLDER / "model.safetensors").write_bytes(b"cut")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run")


def test_a_run_without_a_checkpoint_starts_at_the_beginning() -> None:
    assert find_newest(None, None) == NOTHING


def test_what_ray_would_go_on_from_comes_first_whatever_scores_say(run: Run) -> None:
    newest, _, _ = run.put(3), run.put(1), run.put(9)
    assert run.chosen(newest) == newest.path


def test_in_place_of_a_broken_newest_comes_the_newest_of_the_others_not_the_best(run: Run) -> None:
    _, older, newest, second = run.put(1), run.put(3), run.put(7), run.put(5)
    run.break_(newest)
    assert run.chosen(newest) == second.path
    run.break_(second)
    assert run.chosen(newest) == older.path


def test_checkpoints_that_are_only_the_users_are_passed_over(run: Run) -> None:
    ours, theirs = run.put(1), run.put(2, is_ours=False)
    assert run.chosen(theirs) == ours.path


def test_a_run_with_the_users_checkpoints_alone_says_so(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    theirs = run.put(2, is_ours=False)
    assert run.chosen(theirs) is None
    assert "none of the run's 1 checkpoints is of attach()" in caplog.text


def test_where_every_checkpoint_is_broken_it_is_an_error_and_not_a_new_start(run: Run) -> None:
    first, newest = run.put(1), run.put(2)
    run.break_(first)
    run.break_(newest)
    with pytest.raises(CheckpointError, match=f"none of the run's 2 checkpoints is complete .*{newest.path}"):
        run.chosen(newest)


def test_what_one_rank_cannot_read_may_be_tried_again(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "a", 1.0)
    (folder / "optimizer.pt").unlink()
    with pytest.raises(RestoreError, match="rank 3 can't read the checkpoint that rank 0 found complete"):
        load_found(folder, 3)


def test_what_no_rank_can_load_is_not_tried_again(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with mock.patch("torch.load"):  # a save looks whether it can be loaded
        save(
            folder,
            model=model,
            optimizer=optimizer,
            schedule={},
            ranks=[{"sampler": Path("of a type that torch refuses")}],
            round=0,
            step=0,
        )
    with pytest.raises(CheckpointError, match="PosixPath"):
        load_found(folder, 3)
