"""Shards of a dataset: batch j is rank j mod W's, and a resumed epoch goes on with what is left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("ray")

from hypothesis import given
from hypothesis import strategies as st

from hdet_ray import CheckpointError, ConfigError
from hdet_ray.data import DatasetShard, ElasticDataConfig
from tests.unit.rays_split import RaysSplit


def shards(num_rows: int, num_ranks: int, batch_size: int) -> list[DatasetShard]:
    return [
        DatasetShard(
            RaysSplit(num_rows, rank, num_ranks), batch_size=batch_size, rank=rank, num_ranks=num_ranks
        )
        for rank in range(num_ranks)
    ]


def epochs(shard: DatasetShard) -> Iterator[tuple[int, list[int]]]:
    """Batches of one epoch after another, as a loop takes them."""
    while True:
        epoch = shard.epoch
        for batch in shard.iter_batches():
            yield epoch, batch["id"]


@given(
    attempts=st.lists(st.tuples(st.integers(1, 6), st.integers(0, 14)), min_size=1, max_size=7),
    num_rows=st.integers(30, 60),
    batch_size=st.integers(1, 5),
    steps_between_checkpoints=st.integers(1, 5),
)
def test_kills_at_any_step_and_any_sizes_repeat_what_no_checkpoint_counts_and_skip_nothing(
    attempts: list[tuple[int, int]], num_rows: int, batch_size: int, steps_between_checkpoints: int
) -> None:
    """Each attempt is a number of ranks, and the step at which all of them are killed."""
    saved: dict[str, int] | None = None
    kept: list[tuple[int, int]] = []  # epoch and row of all that a checkpoint counts
    sizes: dict[int, set[int]] = {}  # numbers of ranks that took part in an epoch
    for num_ranks, steps in [*attempts, (attempts[0][0], 100)]:
        ranks = shards(num_rows, num_ranks, batch_size)
        for shard in ranks:
            if saved is not None:
                shard.load_state_dict(saved)
        loops = [epochs(shard) for shard in ranks]
        unsaved: list[tuple[int, int]] = []
        begun = ranks[0].epoch
        for step in range(1, steps + 1):
            taken = [next(loop) for loop in loops]
            assert len({epoch for epoch, _ in taken}) == 1  # no rank waits for another
            for epoch in range(begun, taken[0][0] + 1):  # it may have found nothing left in some
                sizes.setdefault(epoch, set()).add(num_ranks)
            unsaved += [(epoch, row) for epoch, batch in taken for row in batch]
            if step % steps_between_checkpoints == 0:
                states = [shard.state_dict() for shard in ranks]
                assert all(state == states[0] for state in states)
                saved, kept, unsaved = states[0], kept + unsaved, []
        assert len(unsaved) < steps_between_checkpoints * batch_size * num_ranks
    for epoch in range(max(epoch for epoch, _ in kept)):
        seen = Counter(row for e, row in kept if e == epoch)
        assert max(seen.values(), default=1) == 1
        left_out, widest = num_rows - seen.total(), max(sizes[epoch])
        if len(sizes[epoch]) == 1:
            assert left_out < widest
        else:
            assert left_out < widest + (widest - 1) * batch_size


def test_a_rank_counts_its_rows_with_the_short_batch_at_the_end() -> None:
    shard = shards(23, 2, 4)[1]
    assert [len(batch["id"]) for batch in shard.iter_batches()] == [4, 4, 3]
    assert shard.samples_taken == 11
    assert shard.state_dict() == {"epoch": 1, "batches": 0, "batch_size": 4}


def test_a_checkpoint_of_another_batch_size_is_refused() -> None:
    shard = shards(20, 2, 4)[0]
    with pytest.raises(CheckpointError, match="batches of 8 rows"):
        shard.load_state_dict({"epoch": 0, "batches": 2, "batch_size": 8})


@pytest.mark.parametrize("options", [{"batch_size": 3}, {"local_shuffle_buffer_size": 10}])
def test_what_would_mix_rows_across_the_position_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        shards(20, 2, 4)[0].iter_batches(**options)


def test_a_batch_size_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="batch_size=0"):
        ElasticDataConfig(batch_size=0)
