"""Who is left out of an average, what rolls a round back, and what a rollback changes."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any, Literal

import pytest

from hdet_ray.config import Controller, Fixed, Paper, Thresholds
from hdet_ray.core.decide import decide, start
from hdet_ray.core.health import Verdict, judge
from hdet_ray.core.plan import Plan
from hdet_ray.core.report import ReplicaReport
from hdet_ray.exceptions import ConfigError
from tests.unit.runs import make_config, make_replica, make_report, rounds, search_of, weight_decay

NAN_LOSS = make_replica(math.nan)
NAN_WEIGHTS = make_replica(2.0, is_finite=False)
EXPLODED = make_replica(3.0, start_loss=2.0, last_loss=9.0)
"""A rise of 140 times its own noise of 0.05."""


def plan_of(num_replicas: int, sync: Literal["shared", "local"], *, alpha: float = 1 / 9) -> Plan:
    return start(make_config(Fixed(alpha=alpha, gradient_sync=sync)), num_replicas)[1]


def verdict_of(plan: Plan, *changed: tuple[int, ReplicaReport]) -> Verdict:
    """The verdict where all replicas but these are well."""
    replicas = [make_replica(2.0 + 0.01 * r, start_loss=2.05) for r in range(plan.num_replicas)]
    for r, report in changed:
        replicas[r] = report
    return judge(plan, replicas, Thresholds())


def window(losses: Sequence[float], **changes: Any) -> ReplicaReport:
    """What the edge reports of a round's losses."""
    quarter = max(len(losses) // 4, 1)
    steps = [abs(b - a) for a, b in pairwise(losses)]
    return make_replica(
        statistics.fmean(losses),
        start_loss=statistics.median(losses[:quarter]),
        last_loss=losses[-1],
        noise=1.4826 * statistics.median(steps) / math.sqrt(2),
        **changes,
    )


@cache
def windows_of_noise(num_steps: int) -> list[ReplicaReport]:
    chance = random.Random(num_steps)
    return [window([2 + chance.gauss(0, 0.3) for _ in range(num_steps)]) for _ in range(10_000)]


# Local rounds


@pytest.mark.parametrize("broken", [NAN_LOSS, NAN_WEIGHTS, make_replica(2.0, last_loss=math.inf)])
@pytest.mark.parametrize("num_replicas", [2, 3, 4, 8])
def test_in_local_rounds_a_nan_is_left_out_of_the_average(num_replicas: int, broken: ReplicaReport) -> None:
    verdict = verdict_of(plan_of(num_replicas, "local"), (1, broken))
    assert verdict.weights == tuple(0.0 if r == 1 else 1.0 for r in range(num_replicas))
    assert verdict.reasons[1] == "nonfinite"
    assert not verdict.rolls_back


@pytest.mark.parametrize("num_replicas", [2, 3, 4, 8])
def test_in_local_rounds_an_exploding_loss_is_left_out_of_the_average(num_replicas: int) -> None:
    verdict = verdict_of(plan_of(num_replicas, "local"), (0, EXPLODED))
    assert verdict.unhealthy == (0,)
    assert verdict.reasons[0] == "exploded"
    assert not verdict.rolls_back


@pytest.mark.parametrize("broken", [NAN_LOSS, NAN_WEIGHTS, EXPLODED])
@pytest.mark.parametrize("num_replicas", [1, 2, 4])
def test_with_nobody_healthy_local_rounds_roll_back(num_replicas: int, broken: ReplicaReport) -> None:
    verdict = verdict_of(plan_of(num_replicas, "local"), *((r, broken) for r in range(num_replicas)))
    assert verdict.rolls_back
    assert verdict.weights == (0.0,) * num_replicas


# Shared rounds


@pytest.mark.parametrize("alpha", [0.0, 1 / 9])
def test_in_shared_rounds_broken_weights_roll_everyone_back_and_name_who_brought_it(alpha: float) -> None:
    broken = make_replica(math.nan, is_finite=False)
    culprit = make_replica(math.nan, is_finite=False, brought_nonfinite=True)
    verdict = verdict_of(
        plan_of(4, "shared", alpha=alpha), (0, broken), (1, broken), (2, culprit), (3, broken)
    )
    assert verdict.rolls_back
    assert verdict.culprits == (2,)


def test_in_shared_rounds_a_gradient_that_the_scaler_skipped_is_no_illness() -> None:
    skipped = make_replica(2.0, brought_nonfinite=True)
    verdict = verdict_of(plan_of(4, "shared"), (2, skipped))
    assert not verdict.rolls_back
    assert verdict.unhealthy == ()


def test_in_shared_rounds_one_exploding_loss_rolls_everyone_back_and_is_named() -> None:
    verdict = verdict_of(plan_of(4, "shared"), (3, EXPLODED))
    assert verdict.rolls_back
    assert verdict.culprits == (3,)


def test_in_shared_rounds_losses_that_explode_together_roll_back() -> None:
    verdict = verdict_of(plan_of(8, "shared"), *((r, EXPLODED) for r in range(8)))
    assert verdict.rolls_back


def test_equal_replicas_are_never_told_apart_by_their_losses() -> None:
    rising = make_replica(2.4, start_loss=2.0, last_loss=2.9)  # 18 times its noise: unwell if it stood alone
    assert verdict_of(plan_of(4, "shared", alpha=0.0), (1, rising)).unhealthy == ()
    assert verdict_of(plan_of(4, "shared"), (1, rising)).unhealthy == (1,)


# Peers and noise


def test_a_rise_that_all_replicas_share_is_no_explosion_of_one() -> None:
    rising = [
        make_replica(2.3, start_loss=2.0, last_loss=2.7 + 0.01 * r) for r in range(4)
    ]  # about 14 noises
    assert judge(plan_of(4, "local"), rising, Thresholds()).unhealthy == ()


def test_below_four_replicas_only_a_replicas_own_noise_counts() -> None:
    rising = [make_replica(2.3, start_loss=2.0, last_loss=2.7 + 0.01 * r) for r in range(3)]
    assert judge(plan_of(3, "local"), rising, Thresholds()).unhealthy == (0, 1, 2)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_verdict_does_not_depend_on_the_scale_of_the_loss(scale: float) -> None:
    chance = random.Random(5)
    replicas = []
    for r in range(4):
        losses = [scale * (2 + chance.gauss(0, 0.05)) for _ in range(40)]
        losses[-1] += scale * (5 if r == 2 else 0)
        replicas.append(window(losses))
    assert judge(plan_of(4, "local"), replicas, Thresholds()).unhealthy == (2,)


@pytest.mark.parametrize("num_steps", [4, 8, 20])
@pytest.mark.parametrize("num_replicas", [1, 2, 4, 8])
@pytest.mark.parametrize("sync", ["shared", "local"])
def test_ten_thousand_windows_of_noise_raise_no_alarm(
    num_replicas: int, sync: Literal["shared", "local"], num_steps: int
) -> None:
    # The fewer losses in a window, the less sure is the estimate of their noise.
    plan = replace(plan_of(num_replicas, sync), num_steps=num_steps)
    windows = windows_of_noise(num_steps)
    for i in range(10_000):
        verdict = judge(plan, [windows[(i + 1237 * r) % 10_000] for r in range(num_replicas)], Thresholds())
        assert verdict.unhealthy == ()
        assert not verdict.rolls_back


@pytest.mark.parametrize("num_steps", [4, 8, 20])
def test_a_loss_that_runs_away_is_seen_in_a_window_of_any_length(num_steps: int) -> None:
    plan = replace(plan_of(4, "local"), num_steps=num_steps)
    losses = [2.0 + 0.01 * (-1) ** i for i in range(num_steps - 1)]
    runaway = window([*losses, 1e9])
    well = window([*losses, 2.0])
    assert judge(plan, [well, runaway, well, well], Thresholds()).unhealthy == (1,)


def test_a_loss_that_never_moves_has_a_noise_to_be_measured_in() -> None:
    still = make_replica(2.0, noise=0.0)
    jumped = make_replica(2.0, noise=0.0, last_loss=4.0)
    verdict = judge(plan_of(4, "local"), [still, still, still, jumped], Thresholds())
    assert verdict.unhealthy == (3,)


def test_without_a_loss_only_the_weights_are_judged() -> None:
    silent = make_replica(math.nan, has_loss=False, is_finite=True)
    broken = make_replica(math.nan, has_loss=False, is_finite=False)
    assert judge(plan_of(3, "local"), [silent, broken, silent], Thresholds()).unhealthy == (1,)


def test_thresholds_must_be_above_zero() -> None:
    with pytest.raises(ConfigError, match="peer_z=0"):
        Thresholds(peer_z=0)


# Search rounds


def test_in_search_rounds_only_finiteness_counts_and_nothing_rolls_back() -> None:
    _, plan = start(make_config(), 4)
    verdict = judge(plan, [EXPLODED, NAN_LOSS, NAN_WEIGHTS, make_replica(2.0)], Thresholds())
    assert verdict.reasons == ("", "nonfinite", "nonfinite", "")
    assert not verdict.rolls_back
    assert not judge(plan, [NAN_LOSS] * 4, Thresholds()).rolls_back


def test_a_search_that_loses_every_candidate_of_a_round_counts_no_rollback() -> None:
    state, plan = start(make_config(), 4)
    state, _ = decide(state, make_report(plan, [NAN_LOSS] * 4))
    assert (state.rollbacks, state.log_scale) == (0, 0.0)


# Rollbacks


def broken_round(plan: Plan) -> list[ReplicaReport]:
    return [make_replica(math.nan, brought_nonfinite=r == 1) for r in range(plan.num_replicas)]


def test_a_rollback_under_auto_lowers_c_by_0_7_and_goes_on() -> None:
    found = search_of(make_config(), 4, lambda c: 2 + (c - 1) ** 2, untrained_loss=99.0)
    state, plan = found[-1].next_state, found[-1].next_plan
    rolled, after = decide(state, make_report(plan, broken_round(plan)))
    assert rolled.log_scale == pytest.approx(state.log_scale - 0.7)
    assert rolled.rollbacks == 1
    assert (after.round, after.step) == (plan.round + 1, plan.step + plan.num_steps)
    assert any("rolled back" in note and "replica 1 nonfinite" in note for note in after.notes)


@pytest.mark.parametrize("controller", [Fixed(), Paper(warmup_steps=0), Paper(warmup_steps=600)])
def test_a_rollback_under_the_other_controllers_halves_the_rate(controller: Controller) -> None:
    state, plan = start(make_config(controller), 4)
    _, well = decide(state, make_report(plan))
    _, after = decide(state, make_report(plan, broken_round(plan)))
    # The paper's decay does not run in a round that is rolled back.
    before = plan if controller == Paper(warmup_steps=0) else well
    assert after.base["lr", 0] == pytest.approx(before.base["lr", 0] / 2)


def test_a_rollback_leaves_further_hyperparameters_and_velocities_alone() -> None:
    state, plan = start(make_config(Paper(warmup_steps=0), explored=[weight_decay()]), 4)
    rolled, _ = decide(state, make_report(plan, broken_round(plan)))
    assert (rolled.explored, rolled.velocity) == (state.explored, state.velocity)


def test_a_rollback_stops_at_the_lower_bound() -> None:
    config = make_config(Fixed(), bounds={("lr", 0): (9e-4, 2e-3)})
    state, plan = start(config, 2)
    rolled, _ = decide(state, make_report(plan, broken_round(plan)))
    assert 1e-3 * math.exp(rolled.log_scale) == pytest.approx(9e-4)


@pytest.mark.parametrize("max_rollbacks", [0, 3])
def test_after_max_rollbacks_in_a_row_the_next_fails_with_the_evidence(max_rollbacks: int) -> None:
    config = make_config(Fixed(), max_rollbacks=max_rollbacks)
    found = list(rounds(config, 2, lambda plan: make_report(plan, broken_round(plan))))
    assert len(found) == max_rollbacks + 1
    assert all(decided.next_plan.failure is None for decided in found[:-1])
    failure = found[-1].next_plan.failure
    assert failure is not None
    assert failure.reason == "rollback_limit"
    for number in range(max_rollbacks + 1):
        assert f"round {number}: replica 1 nonfinite" in failure.message
    assert f"max_rollbacks={max_rollbacks}" in failure.message


def test_a_healthy_round_between_rollbacks_starts_the_count_anew() -> None:
    config = make_config(Fixed(), max_rollbacks=1)

    def every_other(plan: Plan) -> Any:
        return make_report(plan, broken_round(plan) if plan.round % 2 else None)

    found = list(rounds(config, 2, every_other))
    assert found[-1].next_plan.failure is None
    assert {decided.next_state.rollbacks for decided in found} == {0, 1}
