"""The sampler: the ranks share an epoch out, and a resumed one goes on with what is left."""

from __future__ import annotations

from itertools import chain, islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hdet_ray.train.sampler import ResumableSampler

DATA = list(range(24))


def samplers(world_size: int, **options: bool) -> list[ResumableSampler]:
    return [
        ResumableSampler(DATA, num_replicas=world_size, rank=rank, **options) for rank in range(world_size)
    ]


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


def test_what_was_taken_is_counted_for_all_ranks_and_over_epochs() -> None:
    sampler = samplers(3)[0]
    list(sampler)
    list(islice(sampler, 2))
    assert sampler.samples_taken == len(DATA) + 2 * 3
