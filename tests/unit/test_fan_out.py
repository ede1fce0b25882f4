"""How far from the base value each replica trains (eqs. 1 and 2)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hdet_ray.config import Auto, Fixed
from hdet_ray.core.decide import start
from hdet_ray.core.fan_out import permuted_multipliers, spread_multipliers
from hdet_ray.core.plan import value_at
from hdet_ray.exceptions import ConfigError
from tests.reference.paper import spread
from tests.unit.runs import dropout, make_config, weight_decay

sizes = st.integers(1, 64)
alphas = st.floats(0, 0.99)


@given(num_replicas=sizes, alpha=alphas)
def test_multipliers_are_those_of_equation_1(num_replicas: int, alpha: float) -> None:
    assert spread_multipliers(num_replicas, alpha) == pytest.approx(spread(num_replicas, alpha), rel=1e-15)


@given(num_replicas=sizes, alpha=alphas)
def test_multipliers_are_symmetric_about_one_and_end_at_alpha(num_replicas: int, alpha: float) -> None:
    rho = spread_multipliers(num_replicas, alpha)
    assert [low + high for low, high in zip(rho, reversed(rho), strict=True)] == pytest.approx(
        [2] * num_replicas
    )
    if num_replicas > 1:
        assert (rho[0], rho[-1]) == pytest.approx((1 - alpha, 1 + alpha))


def test_one_replica_trains_at_the_base_value() -> None:
    assert spread_multipliers(1, 1 / 9) == (1.0,)


@given(num_replicas=sizes, alpha=alphas, seed=st.integers(0, 99), round=st.integers(0, 99))
def test_a_permutation_gives_every_replica_one_multiplier(
    num_replicas: int, alpha: float, seed: int, round: int
) -> None:
    drawn = permuted_multipliers(num_replicas, alpha, seed=seed, round=round, purpose="lr/0")
    assert sorted(drawn) == sorted(spread_multipliers(num_replicas, alpha))


@pytest.mark.parametrize("alpha", [-0.1, 1.0, float("nan")])
def test_an_alpha_outside_its_range_is_refused_by_value(alpha: float) -> None:
    with pytest.raises(ConfigError, match=f"alpha={alpha}"):
        spread_multipliers(4, alpha)


def test_no_replica_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match="num_replicas=0"):
        spread_multipliers(0, 0.1)


def test_without_alpha_nothing_is_spread_and_nothing_averaged() -> None:
    _, plan = start(make_config(Fixed(alpha=0.0)), 4)
    assert (plan.phase, plan.end, plan.teams) == ("train", "keep", (0, 0, 0, 0))
    assert plan.keeps_replicas_equal
    rates = {value_at(plan, "lr", 0, r, 5) for r in range(4)}
    assert rates == {plan.cycle.lr_at(0, 5)}  # type: ignore[union-attr]


def test_local_gradients_average_even_without_a_spread() -> None:
    _, plan = start(make_config(Fixed(alpha=0.0, gradient_sync="local")), 3)
    assert (plan.phase, plan.end, plan.teams) == ("train", "average", (0, 1, 2))


def test_every_group_follows_the_one_column_of_the_rate() -> None:
    _, plan = start(make_config(Fixed(), max_lr=(1e-3, 1e-2)), 8)
    assert plan.values["lr", 0] == plan.values["lr", 1]


def test_spread_values_stay_inside_the_bounds() -> None:
    near = [dropout(base=0.88, alpha=0.5), weight_decay(base=1.1e-6, alpha=0.5)]
    config = make_config(Auto(alpha=1 / 9), total_steps=100, explored=near)
    _, plan = start(config, 4)
    dropouts = [value_at(plan, "dropout", 0, r, 0) for r in range(4)]
    decays = [value_at(plan, "weight_decay", 0, r, 0) for r in range(4)]
    assert max(dropouts) == pytest.approx(0.9, rel=1e-15)
    assert min(decays) == pytest.approx(1e-6, rel=1e-15)
