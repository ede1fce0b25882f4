"""Randomness is a function of what it is for: seed, round and purpose."""

from __future__ import annotations

import random
from collections import Counter
from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from hdet_ray.core.draws import permutation, signs, words


def test_the_streams_are_the_same_on_every_machine() -> None:
    # Written down once: another number here means that old ledgers no longer replay.
    assert list(islice(words(0, 0, "lr/0"), 2)) == [8449000234734633082, 11851929143521087175]
    assert permutation(8, words(7, 3, "lr/0")) == (3, 4, 2, 0, 7, 5, 6, 1)
    assert signs(8, words(7, 3, "design/signs")) == (-1, 1, 1, 1, 1, -1, -1, -1)


def test_the_global_random_state_neither_matters_nor_moves() -> None:
    random.seed(1)
    before = random.getstate()
    first = permutation(16, words(0, 0, "lr/0"))
    assert random.getstate() == before
    random.seed(2)
    assert permutation(16, words(0, 0, "lr/0")) == first


@given(seed=st.integers(0, 2**64), round=st.integers(0, 10**6))
def test_seed_round_and_purpose_each_give_another_stream(seed: int, round: int) -> None:
    streams = [
        words(seed, round, "a"),
        words(seed + 1, round, "a"),
        words(seed, round + 1, "a"),
        words(seed, round, "b"),
    ]
    assert len({next(stream) for stream in streams}) == len(streams)


@given(size=st.integers(0, 200), seed=st.integers(0, 999))
def test_a_permutation_holds_each_index_once(size: int, seed: int) -> None:
    assert sorted(permutation(size, words(seed, 0, "x"))) == list(range(size))


def test_all_permutations_come_about_equally_often() -> None:
    count = Counter(permutation(3, words(0, round, "x")) for round in range(6000))
    assert len(count) == 6
    # 1,000 each, give or take five standard deviations (29 each).
    assert all(abs(times - 1000) < 5 * 29 for times in count.values())


def test_signs_are_fair() -> None:
    assert abs(sum(signs(10_000, words(0, 0, "signs")))) < 5 * 100
