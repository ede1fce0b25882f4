"""The paper's controller (eqs. 4-9) equals the slow reference, round by round."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hdet_ray.config import Paper
from hdet_ray.core.decide import decide, start
from hdet_ray.core.draws import permutation, words
from hdet_ray.core.plan import RATE, Plan, value_at
from hdet_ray.core.report import ReplicaReport
from hdet_ray.core.state import Explored, ScheduleConfig
from tests.reference.paper import Column, PaperController, Settings, Told
from tests.unit.runs import dropout, make_config, make_replica, make_report, rounds, weight_decay

TOLERANCE = 1e-12
GROUP_RATES = (1e-3, 3e-2, 7e-5)


def paper_config(
    num_replicas: int,
    *,
    num_rounds: int,
    sync_every: int,
    warmup_steps: int,
    gradient_sync: str = "shared",
    has_probe: bool = True,
    seed: int = 0,
) -> ScheduleConfig:
    """Three groups with their own rates, and as many further hyperparameters as the replicas allow."""
    explored = [weight_decay(), dropout(), weight_decay(group=1, base=0.3, alpha=0.2)]
    controller = Paper(
        sync_every=sync_every,
        warmup_steps=warmup_steps,
        gradient_sync=gradient_sync,  # type: ignore[arg-type]
    )
    return make_config(
        controller,
        total_steps=warmup_steps + num_rounds * sync_every,
        max_lr=GROUP_RATES,
        explored=explored[: 3 if num_replicas == 1 else num_replicas - 1],
        has_probe=has_probe,
        seed=seed,
    )


def reference_of(config: ScheduleConfig) -> PaperController:
    """The slow controller with the same settings."""
    controller = config.controller
    assert isinstance(controller, Paper)
    columns = [
        Column(is_rate=True, start=rate, alpha=controller.alpha, low=config.floor_lr[g], high=rate * 1e4)
        for g, rate in enumerate(config.max_lr)
    ]
    columns += [_column(spec) for spec in config.explored]
    return PaperController(
        Settings(
            total_steps=config.total_steps,
            sync_every=config.sync_every,
            warmup_steps=config.warmup_steps,
            sigma=controller.sigma,
            step_size=controller.step_size,
            momentum=controller.momentum,
        ),
        columns,
    )


def _column(spec: Explored) -> Column:
    return Column(
        is_rate=False,
        start=spec.base,
        alpha=spec.alpha,
        low=spec.low,
        high=spec.high,
        is_log=spec.scale == "log",
    )


def keys_of(config: ScheduleConfig) -> list[tuple[str, int]]:
    """Columns in the reference's order."""
    return [(RATE, g) for g in range(len(config.max_lr))] + [spec.key for spec in config.explored]


def random_replicas(plan: Plan, chance: random.Random) -> tuple[list[ReplicaReport], list[bool]]:
    """Losses by chance, and up to a third of the replicas unhealthy."""
    num_unhealthy = chance.randint(0, plan.num_replicas // 3)
    unhealthy = set(chance.sample(range(plan.num_replicas), num_unhealthy))
    replicas = []
    for r in range(plan.num_replicas):
        loss, probe_loss = chance.gauss(2, 0.3), chance.gauss(3, 0.2)
        replicas.append(
            make_replica(
                math.nan if r in unhealthy else loss,
                is_finite=True,  # parameters that are not would roll the round back
                probe_loss=probe_loss if plan.probe else None,
            )
        )
    return replicas, [r not in unhealthy for r in range(plan.num_replicas)]


def compare(config: ScheduleConfig, sizes: list[int], chance: random.Random, *, max_rounds: int) -> int:
    """Run both side by side; N changes from round to round as ``sizes`` say. The number of rounds run."""
    reference, keys = reference_of(config), keys_of(config)
    state, plan = start(config, sizes[0])
    done = 0
    while plan.num_steps and done < max_rounds:
        slow = reference.plan(
            [permutation(plan.num_replicas, words(config.seed, plan.round, f"{n}/{g}")) for n, g in keys]
        )
        assert (plan.step, plan.num_steps) == (slow.start, slow.steps)
        for j, key in enumerate(keys):
            assert plan.base[key] == pytest.approx(slow.bases[j], rel=TOLERANCE, abs=0), (plan.round, key)
            fast = [value_at(plan, *key, replica, plan.step) for replica in range(plan.num_replicas)]
            assert fast == pytest.approx(slow.values[j], rel=TOLERANCE, abs=0), (plan.round, key)
        replicas, is_healthy = random_replicas(plan, chance)
        reference.converge(
            Told(
                train_losses=[r.loss for r in replicas],
                probe_losses=[r.probe_loss or 0.0 for r in replicas] if plan.probe else None,
                is_healthy=is_healthy,
            )
        )
        done += 1
        size = sizes[done % len(sizes)]
        state, plan = decide(state, make_report(plan, replicas, next_num_replicas=size))
    return done


@pytest.mark.parametrize("num_replicas", [1, 2, 3, 4, 5, 8, 13, 32, 64])
def test_fast_and_slow_agree_over_500_rounds(num_replicas: int) -> None:
    config = paper_config(num_replicas, num_rounds=485, sync_every=4, warmup_steps=57, seed=num_replicas)
    # 57 steps of warm-up are 15 rounds of at most 4.
    assert compare(config, [num_replicas], random.Random(num_replicas), max_rounds=1000) == 500


@settings(max_examples=25)
@given(
    sizes=st.lists(st.integers(2, 9), min_size=1, max_size=4),
    sync_every=st.integers(1, 7),
    warmup_steps=st.integers(0, 20),
    gradient_sync=st.sampled_from(["shared", "local"]),
    has_probe=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_fast_and_slow_agree_whatever_the_settings(
    sizes: list[int], sync_every: int, warmup_steps: int, gradient_sync: str, has_probe: bool, seed: int
) -> None:
    config = paper_config(
        min(sizes),
        num_rounds=20,
        sync_every=sync_every,
        warmup_steps=warmup_steps,
        gradient_sync=gradient_sync,
        has_probe=has_probe,
        seed=seed,
    )
    compare(config, sizes, random.Random(seed), max_rounds=30)


def test_with_equal_losses_every_rate_ends_at_the_floor() -> None:
    config = make_config(Paper(sync_every=10, warmup_steps=60), total_steps=260, max_lr=GROUP_RATES)
    *_, last = rounds(config, 4)
    assert last.next_state.rates == pytest.approx(config.floor_lr, rel=1e-9)


def test_the_rate_is_constant_within_a_round_and_momentum_goes_on_cycling() -> None:
    config = make_config(Paper(sync_every=20, warmup_steps=20), total_steps=400)
    decided = list(rounds(config, 2))[5]
    plan = decided.plan
    assert plan.shape == "constant"
    steps = range(plan.step, plan.step + plan.num_steps)
    assert len({value_at(plan, "lr", 0, 1, t) for t in steps}) == 1
    assert len({value_at(plan, "momentum", 0, 1, t) for t in steps}) == len(steps)


def test_replicas_are_spread_along_the_one_cycle_before_the_warm_up_ends() -> None:
    config = make_config(Paper(sync_every=20, warmup_steps=60), total_steps=400)
    _, plan = start(config, 3)
    assert plan.phase == "fan_out"
    assert config.cycle is not None
    ratios = sorted(value_at(plan, "lr", 0, r, 7) / config.cycle.lr_at(0, 7) for r in range(3))
    assert ratios == pytest.approx([1 - 1 / 9, 1, 1 + 1 / 9], rel=1e-12)


def test_groups_draw_permutations_of_their_own() -> None:
    config = make_config(Paper(), max_lr=(1e-3, 1e-3))
    _, plan = start(config, 16)
    assert plan.values["lr", 0] != plan.values["lr", 1]
    assert sorted(plan.values["lr", 0]) == sorted(plan.values["lr", 1])


def test_the_base_moves_towards_the_better_replicas() -> None:
    config = make_config(Paper(sync_every=20, warmup_steps=0, sigma=0.1), total_steps=4000)
    state, plan = start(config, 4)
    rewarding_high = [make_replica(2 - m) for m in plan.values["lr", 0]]
    rewarding_low = [make_replica(m) for m in plan.values["lr", 0]]
    up, _ = decide(state, make_report(plan, rewarding_high))
    down, _ = decide(state, make_report(plan, rewarding_low))
    assert up.rates is not None
    assert down.rates is not None
    assert up.rates[0] > down.rates[0]
    assert up.delta["lr", 0] > 0 > down.delta["lr", 0]


def test_an_unhealthy_replica_tells_the_controller_nothing() -> None:
    config = make_config(Paper(sync_every=20, warmup_steps=0), total_steps=400)
    state, plan = start(config, 4)
    told = [
        [make_replica(1.0), make_replica(1.1), make_replica(1.2), broken]
        for broken in (make_replica(math.nan, is_finite=True), make_replica(math.inf, is_finite=True))
    ]
    first, second = (decide(state, make_report(plan, replicas))[0] for replicas in told)
    assert first == second
    assert first.rates is not None
    assert math.isfinite(first.rates[0])


def test_further_hyperparameters_wait_for_the_warm_up_as_the_rate_does() -> None:
    config = make_config(Paper(sync_every=20, warmup_steps=40), total_steps=400, explored=[weight_decay()])
    ranked = [make_replica(float(r), probe_loss=float(r)) for r in range(4)]
    found = list(rounds(config, 4, lambda plan: make_report(plan, ranked), max_rounds=3))
    assert [d.next_state.explored != d.state.explored for d in found] == [False, False, True]


def test_the_default_low_bound_lets_the_decay_reach_the_floor() -> None:
    config = make_config(Paper())
    assert config.rate_bounds(0)[0] == pytest.approx(config.floor_lr[0])
    assert make_config().rate_bounds(0)[0] == pytest.approx(config.max_lr[0] * 1e-4)


def test_a_rollback_as_the_warm_up_ends_still_halves_the_rate() -> None:
    config = make_config(Paper(sync_every=20, warmup_steps=20), total_steps=400)
    state, plan = start(config, 2)
    healthy, _ = decide(state, make_report(plan))
    broken, _ = decide(state, make_report(plan, [make_replica(math.nan), make_replica(math.nan)]))
    assert healthy.rates is not None
    assert broken.rates is not None
    assert broken.rates[0] == pytest.approx(healthy.rates[0] / 2, rel=1e-12)
