"""The chaos run's own count of samples: it would see a sample that is skipped, doubled or trained in vain."""

from __future__ import annotations

from typing import Any

from tests.ray.chaos_accounts import count


def lines_of(began_s: float, steps: range, num_ranks: int, first_sample: int) -> list[dict[str, Any]]:
    """What a group writes: rounds of two steps, a sample a rank and step."""
    return [
        {
            "began_s": began_s,
            "step": step,
            "round": step // 2,
            "rank": rank,
            "num_ranks": num_ranks,
            "epoch": 0,
            "samples": [first_sample + (step - steps.start) * num_ranks + rank],
        }
        for step in steps
        for rank in range(num_ranks)
    ]


def test_the_newest_group_that_trained_a_step_counts() -> None:
    lines = lines_of(1.0, range(5), 3, 0) + lines_of(2.0, range(2, 6), 2, 6)
    accounts = count(lines)
    assert accounts.per_round() == {0: [2, 2, 2], 1: [2, 2], 2: [2, 2]}
    assert accounts.repeats == (2,)  # rounds 1 and 2
    assert accounts.num_repeated == 9
    assert accounts.per_epoch()[0].keys() == set(range(14))
    assert max(accounts.per_epoch()[0].values()) == 1


def test_a_group_that_begins_too_late_leaves_a_hole() -> None:
    accounts = count(lines_of(1.0, range(4), 2, 0) + lines_of(2.0, range(4, 6), 2, 10))
    assert accounts.repeats == (0,)
    assert set(range(14)) - accounts.per_epoch()[0].keys() == {8, 9}


def test_a_group_that_begins_too_early_doubles() -> None:
    accounts = count(lines_of(1.0, range(4), 2, 0) + lines_of(2.0, range(4, 6), 2, 6))
    assert accounts.per_epoch()[0].most_common(2) == [(6, 2), (7, 2)]


def test_what_was_left_behind_and_not_reached_again_does_not_count() -> None:
    accounts = count(lines_of(1.0, range(10), 2, 0) + lines_of(2.0, range(4, 6), 2, 8))
    assert len(accounts.chain) == 6
    assert accounts.num_repeated == 12
    assert sorted(accounts.per_epoch()[0]) == list(range(12))
