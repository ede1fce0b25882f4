"""A change of N happens at a boundary and starts from base values; a search that it interrupts goes on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hdet_ray.config import Auto, Controller, Fixed, Paper
from hdet_ray.core.decide import decide, start
from hdet_ray.core.fan_out import spread_multipliers
from hdet_ray.core.plan import Plan, value_at
from hdet_ray.core.planning import plan_for
from hdet_ray.core.state import ScheduleState, state_to_json
from tests.unit.runs import LossOfC, after, c_of, make_config, make_report, measured, weight_decay


def bowl(best: float) -> LossOfC:
    return lambda c: 2 + 0.1 * (c - best) ** 2


def through(state: ScheduleState, plan: Plan, sizes: Sequence[int]) -> list[tuple[ScheduleState, Plan]]:
    """State and plan after each boundary at which N becomes the next size."""
    found = []
    for size in sizes:
        state, plan = decide(state, make_report(plan, next_num_replicas=size))
        found.append((state, plan))
    return found


@pytest.mark.parametrize(
    "controller", [Fixed(), Fixed(gradient_sync="local"), Paper(warmup_steps=0), Auto(alpha=0.1)]
)
def test_from_4_to_2_to_3_to_8_every_assignment_is_made_anew_from_the_base(controller: Controller) -> None:
    config = make_config(controller, total_steps=350)  # too short for a search
    state, plan = start(config, 4)
    unchanged = through(state, plan, [4, 4, 4])
    for (_, resized), (_, plain), size in zip(
        through(state, plan, [2, 3, 8]), unchanged, [2, 3, 8], strict=True
    ):
        assert resized.base["lr", 0] == pytest.approx(
            plain.base["lr", 0], rel=0.05
        )  # the paper's decides by N
        if not isinstance(controller, Paper):
            assert resized.base == plain.base
        assert resized.num_replicas == len(resized.teams) == size
        expected = spread_multipliers(size, controller.alpha)
        assert sorted(resized.values["lr", 0]) == pytest.approx(sorted(expected))
        rates = [value_at(resized, "lr", 0, r, resized.step) for r in range(size)]
        assert math.fsum(rates) / size == pytest.approx(resized.base["lr", 0])


def test_a_state_plans_for_any_number_of_replicas_and_holds_none() -> None:
    config = make_config(Paper(warmup_steps=0), explored=[weight_decay()])
    state, _ = after(config, 4, 3)
    plans = {n: plan_for(state, n) for n in (2, 3, 4, 8, 64)}
    assert {n: plan.num_replicas for n, plan in plans.items()} == {n: n for n in plans}
    assert len({(plan.base["lr", 0], plan.step, plan.num_steps) for plan in plans.values()}) == 1


@given(num_replicas=st.integers(2, 64), num_rounds=st.integers(0, 8))
def test_runs_with_equal_losses_hold_the_same_state_whatever_their_size(
    num_replicas: int, num_rounds: int
) -> None:
    config = make_config(Paper(sync_every=20, warmup_steps=40), total_steps=400, explored=[weight_decay()])
    large, small = (state_to_json(after(config, n, num_rounds)[0]) for n in (num_replicas, 2))
    # Equal losses weigh all replicas alike: up to rounding, Delta is 0 at any N.
    for name in ("rates", "explored", "round", "step", "ratios", "search", "bounds"):
        a, b = large["state"][name], small["state"][name]
        assert a == pytest.approx(b) if name == "rates" else str(a)[:12] == str(b)[:12]


def test_a_search_that_a_resize_interrupts_is_repeated_with_the_new_n_and_keeps_its_points() -> None:
    state, plan = start(make_config(), 4)
    state, plan = decide(state, measured(plan, bowl(1.0), untrained_loss=99.0, next_num_replicas=8))
    assert state.search is not None
    points = state.search.points
    assert len(points) == 4
    assert plan.teams == tuple(range(8))
    assert [c_of(plan, r) for r in range(8)] == pytest.approx([0.75 + 1.5 * (r - 3.5) for r in range(8)])
    repeated = plan_for(state, 3)  # the round did not end: another number of replicas begins it again
    assert [c_of(repeated, r) for r in range(3)] == pytest.approx([-0.75, 0.75, 2.25])
    assert repeated.round == plan.round
    state, plan = decide(state, measured(repeated, bowl(1.0)))
    assert state.search is not None
    assert state.search.points[:4] == points
    assert len(state.search.points) == 7


@settings(max_examples=60)
@given(sizes=st.lists(st.integers(2, 16), min_size=1, max_size=8), best=st.floats(-4, 4))
def test_a_search_finds_the_best_rate_however_often_n_changes(sizes: list[int], best: float) -> None:
    state, plan = start(make_config(), sizes[0])
    for i in range(1, 9):
        if not plan.is_search:
            break
        size = sizes[i % len(sizes)]
        state, plan = decide(state, measured(plan, bowl(best), untrained_loss=99.0, next_num_replicas=size))
    assert plan.phase == "train"
    assert state.search is not None
    # Five scouts of two replicas each reach 3.75, and three pairs 3 more.
    assert state.log_scale == pytest.approx(best, abs=1e-6)


def test_with_one_replica_left_the_search_ends_at_its_best_and_training_goes_on() -> None:
    state, plan = start(make_config(), 4)
    state, plan = decide(state, measured(plan, bowl(1.0), untrained_loss=99.0, next_num_replicas=1))
    assert (plan.phase, plan.num_replicas) == ("train", 1)
    assert plan.peak["lr", 0] == pytest.approx(1e-3 * math.exp(0.75))
    state, plan = decide(state, make_report(plan))
    assert not state.is_searching
    assert plan.peak["lr", 0] == pytest.approx(1e-3 * math.exp(0.75))
    assert any("the search ended" in note for note in plan.notes)


def test_a_second_replica_that_is_back_in_time_goes_on_searching() -> None:
    state, plan = start(make_config(), 4)
    state, plan = decide(state, measured(plan, bowl(1.0), untrained_loss=99.0, next_num_replicas=1))
    assert plan_for(state, 4).is_search


@pytest.mark.parametrize("controller", [Fixed(), Fixed(gradient_sync="local"), Paper(warmup_steps=0), Auto()])
def test_one_replica_alone_has_no_spread_and_nothing_to_average_and_still_trains(
    controller: Controller,
) -> None:
    state, plan = start(make_config(controller), 1)
    done = 0
    while plan.num_steps:
        assert (plan.phase, plan.end, plan.teams) == ("train", "keep", (0,))
        assert plan.values["lr", 0] == (1.0,)
        done += plan.num_steps
        state, plan = decide(state, make_report(plan))
    assert done == 1200


def test_from_one_replica_to_four_the_fan_out_begins() -> None:
    state, plan = start(make_config(Fixed()), 1)
    _, plan = decide(state, make_report(plan, next_num_replicas=4))
    assert plan.phase == "fan_out"
    assert len(set(plan.values["lr", 0])) == 4
