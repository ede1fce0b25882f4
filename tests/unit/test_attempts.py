"""Attempts: numbers only grow, and a rollback goes on from what its own driver has saved."""

from __future__ import annotations

from pathlib import Path

import pyarrow.fs as pafs
import pytest
import torch

from hdet_ray.exceptions import CheckpointError
from hdet_ray.train.attempts import Attempts
from hdet_ray.train.checkpoints import save


def attempts_of(folder: Path) -> Attempts:
    return Attempts(pafs.LocalFileSystem(), str(folder))


def saved(folder: Path, *, round: int, attempt: int) -> str:
    model = torch.nn.Linear(1, 1)
    path = folder / f"checkpoint_{attempt}_{round}" / "hdet"
    save(
        path,
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        schedule={},
        ranks=[{"rng": {}}],
        round=round,
        step=round * 10,
        attempt=attempt,
    )
    return str(path)


def test_numbers_only_grow(tmp_path: Path) -> None:
    assert [attempts_of(tmp_path).begin(submission) for submission in (1, 1, 2)] == [1, 2, 3]
    assert attempts_of(tmp_path).submissions() == {1: 1, 2: 1, 3: 2}


def test_a_number_that_the_ledger_knows_is_not_given_again(tmp_path: Path) -> None:
    assert attempts_of(tmp_path).begin(1, above=4) == 5


def test_a_file_that_was_cut_short_still_holds_its_number(tmp_path: Path) -> None:
    attempts_of(tmp_path).begin(1)
    (tmp_path / "hdet-attempts" / "1.json").write_text('{"atte')
    assert attempts_of(tmp_path).submissions() == {1: 0}
    assert attempts_of(tmp_path).begin(1) == 2


def test_a_rollback_goes_to_the_newest_checkpoint_of_its_round(tmp_path: Path) -> None:
    attempts = attempts_of(tmp_path)
    for submission in (1, 1, 2):
        attempts.begin(submission)
    newest_first = [saved(tmp_path, round=k, attempt=a) for a, k in ((2, 5), (2, 4), (1, 4), (1, 3))]
    assert attempts.choose(newest_first, submission=2, round=4) == newest_first[1]


def test_its_own_newest_checkpoint_counts_once_there_is_one(tmp_path: Path) -> None:
    attempts = attempts_of(tmp_path)
    for submission in (1, 2, 2):
        attempts.begin(submission)
    newest_first = [saved(tmp_path, round=k, attempt=a) for a, k in ((2, 6), (2, 5), (1, 9), (1, 4))]
    assert attempts.choose(newest_first, submission=2, round=4) == newest_first[0]


def test_a_damaged_checkpoint_of_the_round_is_passed_over(tmp_path: Path) -> None:
    attempts = attempts_of(tmp_path)
    attempts.begin(1)
    attempts.begin(1)
    newest_first = [saved(tmp_path, round=4, attempt=a) for a in (2, 1)]
    (Path(newest_first[0]) / "model.safetensors").write_bytes(b"")
    assert attempts.choose(newest_first, submission=2, round=4) == newest_first[1]


def test_a_round_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    attempts = attempts_of(tmp_path)
    attempts.begin(1)
    with pytest.raises(CheckpointError, match="round 7"):
        attempts.choose([saved(tmp_path, round=4, attempt=1)], submission=2, round=7)
