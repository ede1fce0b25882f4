"""The search in a whole run: it finds the best rate whatever the start, at its cost, and says what it did."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hdet_ray.config import Auto
from hdet_ray.core.decide import decide, start
from hdet_ray.core.plan import Plan, value_at
from hdet_ray.core.report import RoundReport
from hdet_ray.core.search import pool, scout_teams, search_lengths, shortest_run
from hdet_ray.exceptions import ConfigError
from tests.unit.runs import (
    Decided,
    LossOfC,
    c_of,
    make_config,
    make_replica,
    make_report,
    measured,
    rounds,
    search_of,
)

HUNDREDFOLD = math.log(100)
SIZES = [2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 31, 64]


def bowl(best: float, *, cliff: float = 2.2) -> LossOfC:
    """Quadratic in the log rate; too far above the best rate training diverges."""

    def loss(c: float) -> float:
        return math.nan if c - best > cliff else 2 + 0.1 * (c - best) ** 2

    return loss


def plateau(best: float) -> LossOfC:
    """Low rates stay near the untrained loss of 5; above the best the loss rises steeply, then diverges."""

    def loss(c: float) -> float:
        x = c - best
        if x > 2:
            return math.nan
        return 3 + 0.3 * x * x if x > 0 else 5 - 2 * math.exp(-x * x / 18)

    return loss


def noisy(loss_of: LossOfC, sigma: float, seed: int) -> LossOfC:
    chance = random.Random(seed)
    return lambda c: loss_of(c) + chance.gauss(0, sigma)


def phases(found: Sequence[Decided]) -> Counter[str]:
    return Counter(decided.plan.phase for decided in found)


# Where it ends


@pytest.mark.parametrize("num_replicas", SIZES)
@pytest.mark.parametrize("curve", [bowl, plateau])
def test_the_best_rate_is_found_from_a_hundredth_to_a_hundredfold(
    num_replicas: int, curve: Callable[[float], LossOfC]
) -> None:
    for tenths in range(-46, 47, 4):
        best = tenths / 10
        found = search_of(
            make_config(), num_replicas, curve(best), untrained_loss=5.0 if curve is plateau else 99.0
        )
        state = found[-1].next_state
        # A parabola through a lopsided curve lies beside its lowest point, here by a quarter.
        tolerance = 1e-9 if curve is bowl else 0.3
        assert state.log_scale == pytest.approx(best, abs=tolerance), best
        assert found[-1].next_plan.phase == "train"


@settings(max_examples=60)
@given(num_replicas=st.integers(2, 64), best=st.floats(-HUNDREDFOLD, HUNDREDFOLD))
def test_the_vertex_of_a_parabola_is_exact_for_any_start_and_size(num_replicas: int, best: float) -> None:
    state = search_of(make_config(), num_replicas, bowl(best), untrained_loss=99.0)[-1].next_state
    assert state.log_scale == pytest.approx(best, abs=1e-8)


@pytest.mark.parametrize("num_replicas", [2, 4, 8])
def test_noise_moves_the_result_by_little(num_replicas: int) -> None:
    errors = []
    for seed in range(40):
        best = random.Random(seed).uniform(-HUNDREDFOLD, HUNDREDFOLD)
        found = search_of(make_config(), num_replicas, noisy(bowl(best), 0.02, seed), untrained_loss=99.0)
        errors.append(abs(found[-1].next_state.log_scale - best))
    errors.sort()
    assert errors[20] < 0.15
    assert errors[-1] < 1.0


def test_the_search_trains_on_at_the_rate_it_found_with_the_whole_shape_over_the_steps_left() -> None:
    config = make_config(total_steps=1000, max_lr=(1e-3, 1e-2))
    *_, last = search_of(config, 4, bowl(1.0), untrained_loss=99.0)
    plan = last.next_plan
    assert config.cycle is not None
    assert plan.search_steps == plan.step == last.next_state.search_steps
    for group, max_lr in enumerate(config.max_lr):
        at_start = value_at(plan, "lr", group, 0, plan.step)
        assert at_start == pytest.approx(math.e * max_lr / 25, rel=1e-6)
        at_top = value_at(plan, "lr", group, 0, plan.step + round(0.3 * (1000 - plan.step)) - 1)
        assert at_top == pytest.approx(math.e * max_lr, rel=1e-4)
        assert value_at(plan, "lr", group, 0, 999) == pytest.approx(math.e * config.floor_lr[group], rel=1e-4)


# What it costs


@settings(max_examples=150)
@given(
    num_replicas=st.integers(2, 20),
    total_steps=st.integers(352, 3000),
    losses=st.lists(st.one_of(st.floats(1, 6), st.just(math.nan)), min_size=1, max_size=30),
)
def test_whatever_replicas_report_the_search_ends_within_a_quarter_of_the_run(
    num_replicas: int, total_steps: int, losses: list[float]
) -> None:
    stream = iter(losses * 200)
    found = search_of(make_config(total_steps=total_steps), num_replicas, lambda c: next(stream))
    steps = sum(decided.report.steps for decided in found)
    assert steps <= 11 * min(20, total_steps // 44) <= total_steps / 4
    assert phases(found)["scout"] <= 5
    assert phases(found)["pairs"] <= 3
    state = found[-1].next_state
    assert not state.is_searching
    assert state.failure or math.isfinite(state.log_scale)


@pytest.mark.parametrize("num_replicas", [3, 4, 5, 8])
def test_from_a_right_rate_two_scouts_and_two_pairs_are_enough(num_replicas: int) -> None:
    found = search_of(make_config(), num_replicas, bowl(0.2), untrained_loss=99.0)
    assert [decided.plan.phase for decided in found] == ["scout", "scout", "pairs", "pairs"]
    assert sum(decided.plan.num_steps for decided in found) == 120


def test_scouts_shrink_so_that_the_worst_case_is_a_quarter_of_the_run() -> None:
    for total_steps in range(1, 1500):
        scout_steps = min(20, total_steps // 44)  # a quarter of the steps over 11
        expected = (scout_steps, 2 * scout_steps) if scout_steps >= 8 else None
        assert search_lengths(Auto(), total_steps) == expected, total_steps


def test_a_run_below_352_steps_is_not_searched_and_says_so_once() -> None:
    assert shortest_run(Auto()) == 352
    config = make_config(total_steps=351)
    state, plan = start(config, 4)
    assert state.search is None
    assert plan.phase == "train"
    assert len(plan.notes) == 1
    assert "total_steps=351" in plan.notes[0]
    assert "352" in plan.notes[0]
    assert decide(state, make_report(plan))[1].notes == ()
    assert start(make_config(total_steps=352), 4)[1].phase == "scout"


@given(
    scout_steps=st.integers(8, 60),
    pair_steps=st.integers(8, 60),
    total_steps=st.integers(1, 5000),
    ratio=st.floats(0.01, 1),
)
def test_settings_of_ones_own_keep_the_worst_case_within_their_part_of_the_run(
    scout_steps: int, pair_steps: int, total_steps: int, ratio: float
) -> None:
    auto = Auto(scout_steps=scout_steps, pair_steps=pair_steps, max_search_ratio=ratio)
    lengths = search_lengths(auto, total_steps)
    if lengths is not None:
        worst = auto.max_scouts * lengths[0] + auto.max_pairs * lengths[1]
        assert worst <= ratio * total_steps * (1 + 1e-12)
        assert 8 <= lengths[0] <= scout_steps
        assert 8 <= lengths[1] <= pair_steps


# What a round looks like


@given(num_replicas=st.integers(2, 200))
def test_scouts_are_at_most_eight_teams_of_equal_size_with_the_rest_in_the_middle(num_replicas: int) -> None:
    sizes = Counter(scout_teams(num_replicas))
    num_teams = min(num_replicas, 8)
    assert sorted(sizes) == list(range(num_teams))
    size, rest = divmod(num_replicas, num_teams)
    by_distance = sorted(range(num_teams), key=lambda i: (abs(2 * i - (num_teams - 1)), i))
    assert [sizes[team] for team in by_distance] == [size + 1] * rest + [size] * (num_teams - rest)


def test_candidates_of_a_scout_lie_one_and_a_half_apart_around_its_centre() -> None:
    _, plan = start(make_config(), 4)
    assert [c_of(plan, r) for r in range(4)] == pytest.approx([-2.25, -0.75, 0.75, 2.25])
    assert plan.teams == (0, 1, 2, 3)
    assert plan.end == "put_back"


def test_a_candidate_warms_up_and_decays_within_its_round_at_full_momentum() -> None:
    _, plan = start(make_config(), 2)
    rates = [value_at(plan, "lr", 0, 0, t) for t in range(20)]
    peak = 1e-3 * math.exp(-0.75)
    expected = [peak * min(1, (j + 1) / 3, (20 - j) / 10) for j in range(20)]
    assert rates == pytest.approx(expected, rel=1e-12)
    assert {value_at(plan, "momentum", 0, 0, t) for t in range(20)} == {0.95}
    assert plan.base["lr", 0] * plan.values["lr", 0][0] == pytest.approx(rates[0], rel=1e-12)


def test_pairs_are_two_halves_at_the_scouts_place_and_one_above_on_samples_of_their_own() -> None:
    found = search_of(make_config(), 6, bowl(0.2), untrained_loss=99.0)
    scout, pair = found[0].plan, next(d.plan for d in found if d.plan.phase == "pairs")
    assert pair.teams == (0, 0, 0, 1, 1, 1)
    assert c_of(pair, 5) - c_of(pair, 0) == pytest.approx(1.0)
    assert pair.num_steps == 2 * scout.num_steps == 40
    assert scout.probe is not None
    assert pair.probe is not None
    assert (scout.probe.first, scout.probe.count) == (0, 4)  # 256 samples, 64 a call
    assert (pair.probe.first, pair.probe.count) == (4, 16)  # the next 1,024


def test_the_untrained_weights_are_measured_once_on_each_stages_own_samples() -> None:
    found = search_of(make_config(), 4, bowl(1.0), untrained_loss=99.0)
    plans = [decided.plan for decided in found]
    first_pair = next(plan for plan in plans if plan.phase == "pairs")
    asking = [plan for plan in plans if plan.untrained_probe is not None]
    assert asking == [plans[0], first_pair]
    assert all(plan.untrained_probe == plan.probe for plan in asking)
    assert found[0].next_state.search is not None
    assert found[0].next_state.search.untrained_loss == 99.0
    assert found[0].next_state.search.pair_untrained_loss is None
    assert found[-1].next_state.search is not None
    assert found[-1].next_state.search.pair_untrained_loss == 99.0


def test_the_last_of_an_odd_number_trains_at_the_pairs_place_and_is_not_scored() -> None:
    def report_of(plan: Plan) -> RoundReport:
        report = measured(plan, bowl(0.2), untrained_loss=99.0)
        if plan.phase == "pairs":
            broken = make_replica(math.nan, is_finite=False, probe_loss=math.nan)
            report = replace(report, replicas=(*report.replicas[:-1], broken))
        return report

    found = [d for d in rounds(make_config(), 5, report_of) if d.plan.is_search]
    pair = next(d.plan for d in found if d.plan.phase == "pairs")
    assert pair.teams == (0, 0, 1, 1, None)
    assert c_of(pair, 4) == pytest.approx(c_of(pair, 0))
    assert found[-1].next_state.log_scale == pytest.approx(0.2, abs=1e-9)


@pytest.mark.parametrize("best", [-9.0, 0.3, 9.0])
def test_no_replica_leaves_the_bounds_while_searching(best: float) -> None:
    bounds = {("lr", 0): (5e-4, 4e-3)}
    found = search_of(make_config(bounds=bounds), 8, bowl(best, cliff=99), untrained_loss=99.0)
    for decided in found:
        plan = decided.plan
        rates = [plan.peak["lr", 0] * m for m in plan.values["lr", 0]]
        assert min(rates) >= 5e-4 * (1 - 1e-9)
        assert max(rates) <= 4e-3 * (1 + 1e-9)
    result = 1e-3 * math.exp(found[-1].next_state.log_scale)
    inside = min(max(1e-3 * math.exp(best), 5e-4), 4e-3)
    # Candidates crowded together at a bound make the parabola's cells narrow, not wrong.
    assert result == pytest.approx(inside, rel=0.05)


def test_a_starting_rate_outside_its_bounds_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"max_lr=0\.001 of group 0 lies outside"):
        make_config(bounds={("lr", 0): (2e-3, 4e-3)})


# What it says, and special cases


def test_five_scouts_without_confirmation_go_on_from_the_best_with_a_warning() -> None:
    found = search_of(
        make_config(bounds={("lr", 0): (1e-9, 1e9)}), 2, bowl(20.0, cliff=99), untrained_loss=99.0
    )
    assert phases(found) == {"scout": 5, "pairs": 3}
    state = found[-1].next_state
    assert state.search is not None
    assert not state.search.is_confirmed
    assert any("not confirmed by 5 scouts" in note for note in state.notes)


def test_a_search_without_a_living_candidate_fails_with_the_table_of_what_was_tried() -> None:
    found = search_of(make_config(), 4, lambda c: math.nan)
    state, plan = found[-1].next_state, found[-1].next_plan
    assert len(found) == 5
    assert plan.failure is not None
    assert plan.failure.reason == "search"
    assert plan.num_steps == 0
    rows = [line for line in plan.failure.message.splitlines() if "not finite" in line]
    assert state.search is not None
    assert len(rows) == len(pool(state.search.points, "scout"))
    assert "max_lr = 0.009488: not finite" in plan.failure.message


def test_candidates_worse_than_untrained_stand_in_the_table_with_their_losses() -> None:
    found = search_of(make_config(), 4, lambda c: 6.0, untrained_loss=5.5)
    failure = found[-1].next_plan.failure
    assert failure is not None
    assert "(loss 5.5)" in failure.message
    assert ": 6" in failure.message


def test_a_suspect_result_is_told_in_a_warning() -> None:
    found = search_of(make_config(), 4, bowl(0.0, cliff=0.6), untrained_loss=99.0)
    state, plan = found[-1].next_state, found[-1].next_plan
    assert state.search is not None
    assert state.search.is_suspect
    assert any("suspect" in note for note in plan.notes)


def test_without_a_probe_the_losses_of_the_last_quarter_decide() -> None:
    config = make_config(has_probe=False)
    _, plan = start(config, 4)
    assert plan.probe is None
    assert any("no probe" in note for note in plan.notes)
    found = search_of(config, 4, bowl(-1.3), untrained_loss=99.0)
    assert found[-1].next_state.log_scale == pytest.approx(-1.3, abs=1e-9)


def test_a_candidate_with_broken_weights_is_dead_whatever_its_probe_says() -> None:
    state, plan = start(make_config(), 4)
    replicas = [make_replica(2.0, probe_loss=2.0 - r, is_finite=r < 3) for r in range(4)]
    state, _ = decide(state, make_report(plan, replicas))
    assert state.search is not None
    assert [p.is_dead for p in state.search.points] == [False, False, False, True]


def test_one_replica_alone_trains_plain_one_cycle_and_says_so_once() -> None:
    state, plan = start(make_config(), 1)
    assert state.search is None
    assert (plan.phase, plan.values["lr", 0], plan.scale["lr", 0]) == ("train", (1.0,), 1.0)
    assert len(plan.notes) == 1
    assert decide(state, make_report(plan))[1].notes == ()
