"""The sampler: the ranks share an epoch out, and a resumed one goes on with what is left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from hdet_ray import ConfigError
from hdet_ray.data import ElasticSampler

DATA = list(range(24))


def samplers(world_size: int, **options: bool) -> list[ElasticSampler]:
    return [ElasticSampler(DATA, num_replicas=world_size, rank=rank, **options) for rank in range(world_size)]


@given(world_size=st.integers(1, 9), shuffle=st.booleans())
def test_an_epoch_covers_every_sample(world_size: int, shuffle: bool) -> None:
    taken = [list(sampler) for sampler in samplers(world_size, shuffle=shuffle)]
    assert set(chain.from_iterable(taken)) == set(DATA)
    assert len({len(indices) for indices in taken}) == 1  # no rank waits for another


@given(before=st.integers(1, 8), after=st.integers(1, 8), steps=st.integers(0, 3))
def test_a_resumed_epoch_takes_what_was_left_at_any_world_size(before: int, after: int, steps: int) -> None:
    old, new = samplers(before), samplers(after)
    seen = list(chain.from_iterable(islice(sampler, steps) for sampler in old))
    for sampler in new:
        sampler.load_state_dict(old[0].state_dict())
    rest = [] if new[0].epoch else list(chain.from_iterable(new))
    assert set(seen) | set(rest) == set(DATA)
    assert len(seen) + len(rest) <= len(DATA) + after - 1  # only to fill up the last step


@given(
    attempts=st.lists(st.tuples(st.integers(1, 7), st.integers(0, 14)), min_size=1, max_size=7),
    batch_size=st.integers(1, 4),
    steps_between_checkpoints=st.integers(1, 5),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
)
def test_kills_at_any_step_and_any_sizes_repeat_what_no_checkpoint_counts_and_skip_nothing(
    attempts: list[tuple[int, int]],
    batch_size: int,
    steps_between_checkpoints: int,
    shuffle: bool,
    drop_last: bool,
) -> None:
    """Each attempt is a world size, and the step at which all of it is killed; the last one ends an epoch."""
    saved: dict[str, int] | None = None
    kept: list[tuple[int, int]] = []  # epoch and sample of all that a checkpoint counts
    ended_by: dict[int, int] = {}  # the world size that took an epoch's last step, or found none left
    for world_size, steps in [*attempts, (attempts[0][0], 100)]:
        ranks = samplers(world_size, shuffle=shuffle, drop_last=drop_last)
        for sampler in ranks:
            if saved is not None:
                sampler.load_state_dict(saved)
        loops = [epochs(sampler, batch_size) for sampler in ranks]
        unsaved: list[tuple[int, int]] = []
        begun = 0 if saved is None else saved["epoch"]
        for step in range(1, steps + 1):
            taken = [next(loop) for loop in loops]
            assert len({epoch for epoch, _ in taken}) == 1  # no rank waits for another
            unsaved += [(epoch, sample) for epoch, batch in taken for sample in batch]
            for epoch in range(begun, taken[0][0] + 1):
                ended_by[epoch] = world_size
            if step % steps_between_checkpoints == 0:
                states = [sampler.state_dict() for sampler in ranks]
                assert all(state == states[0] for state in states)
                saved, kept, unsaved = states[0], kept + unsaved, []
        assert len(unsaved) < steps_between_checkpoints * batch_size * world_size  # seen again, and no more
    whole = sorted({epoch for epoch, _ in kept})[:-1]
    assert whole == list(range(len(whole)))
    for epoch in whole:
        seen = Counter(sample for e, sample in kept if e == epoch)
        if drop_last:
            assert max(seen.values()) == 1
            assert len(DATA) - seen.total() < ended_by[epoch]
        else:
            assert set(seen) == set(DATA)
            assert seen.total() - len(DATA) < ended_by[epoch]


def epochs(sampler: ElasticSampler, batch_size: int) -> Iterator[tuple[int, list[int]]]:
    """Batches of one epoch after another, as a loop over a DataLoader gives them."""
    epoch = sampler.epoch
    while True:
        sampler.set_epoch(epoch)
        indices = iter(sampler)
        while batch := list(islice(indices, batch_size)):
            yield epoch, batch
        epoch += 1


def test_a_resumed_epoch_is_the_unbroken_one() -> None:
    for unbroken, resumed in zip(samplers(3), samplers(3), strict=True):
        unbroken.set_epoch(5)
        iterator = iter(unbroken)
        head = list(islice(iterator, 4))
        resumed.load_state_dict(unbroken.state_dict())
        resumed.set_epoch(5)
        assert list(resumed) == list(iterator)
        assert len(head) == 4


def test_another_epoch_starts_at_its_first_sample() -> None:
    sampler, fresh = samplers(2)[0], samplers(2)[0]
    list(islice(sampler, 5))
    sampler.set_epoch(1)
    fresh.set_epoch(1)
    assert list(sampler) == list(fresh)


def test_after_an_epochs_last_sample_the_next_epoch_is_saved() -> None:
    sampler = samplers(2)[0]
    list(sampler)
    assert sampler.state_dict() == {"epoch": 1, "position": 0}


def test_the_same_epoch_can_be_taken_twice() -> None:
    sampler = samplers(2)[1]
    assert list(sampler) == list(sampler)


@pytest.mark.parametrize(("drop_last", "expected"), [(True, 20), (False, 25)])
def test_drop_last_leaves_out_what_does_not_fill_a_step(drop_last: bool, expected: int) -> None:
    taken = list(chain.from_iterable(samplers(5, drop_last=drop_last)))
    assert len(taken) == expected


def test_what_a_rank_took_is_counted_over_epochs() -> None:
    sampler = samplers(3)[0]
    list(sampler)
    list(islice(sampler, 2))
    assert sampler.samples_taken == len(DATA) // 3 + 2


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_count_what_the_loop_took_though_workers_fetch_ahead(num_workers: int) -> None:
    sampler, resumed = samplers(2)[0], samplers(2)[0]
    loader = DataLoader(torch.tensor(DATA), batch_size=3, sampler=sampler, num_workers=num_workers)
    batches = sampler.batches(loader)
    seen = [batch.tolist() for batch in islice(batches, 2)]
    assert sampler.samples_taken == 6
    assert sampler.state_dict() == {"epoch": 0, "position": 12}
    resumed.load_state_dict(sampler.state_dict())
    assert [*chain.from_iterable(seen), *resumed] == list(samplers(2)[0])


def test_batches_end_with_the_epoch_and_count_its_short_last_one() -> None:
    sampler = samplers(5)[2]
    loader = DataLoader(torch.tensor(DATA), batch_size=2, sampler=sampler)
    assert [len(batch) for batch in sampler.batches(loader)] == [2, 2, 1]
    assert sampler.samples_taken == 5
    assert sampler.state_dict() == {"epoch": 1, "position": 0}


def test_batches_of_another_samplers_loader_are_refused() -> None:
    sampler, other = samplers(2)
    with pytest.raises(ConfigError, match="sampler=this sampler"):
        next(sampler.batches(DataLoader(torch.tensor(DATA), sampler=other)))
