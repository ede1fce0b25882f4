"""The harness itself: what it promises to the tests that stand on it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.distributed.ranks import RankFailedError, run_on_ranks


def sum_of_ranks(rank: int, factor: int) -> tuple[int, torch.Tensor]:
    total = torch.tensor([rank * factor])
    dist.all_reduce(total)
    return rank, total


def fail_on_rank_one(rank: int) -> None:
    if rank == 1:
        raise ValueError("rank one's own words")
    dist.barrier()


def die_on_rank_one(rank: int) -> None:
    if rank == 1:
        os._exit(3)
    dist.barrier()


def test_every_rank_returns_its_value_in_order(tmp_path: Path) -> None:
    results = run_on_ranks(sum_of_ranks, 3, 10, store_path=tmp_path)
    assert [(rank, total.item()) for rank, total in results] == [(0, 30), (1, 30), (2, 30)]


@pytest.mark.parametrize(
    ("function", "words"),
    [(fail_on_rank_one, "rank one's own words"), (die_on_rank_one, "died without a word")],
)
def test_a_failed_rank_ends_the_others_and_is_quoted(tmp_path: Path, function, words: str) -> None:
    started = time.monotonic()
    with pytest.raises(RankFailedError, match=words):
        run_on_ranks(function, 3, store_path=tmp_path)
    assert time.monotonic() - started < 30
