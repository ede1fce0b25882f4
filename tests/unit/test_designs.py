"""Balanced two-level designs tell several hyperparameters apart where independent columns can't."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hdet_ray.config import Auto, Fixed
from hdet_ray.core.decide import decide, start
from hdet_ray.core.designs import balanced_columns
from hdet_ray.exceptions import ConfigError
from tests.unit.runs import dropout, make_config, make_report, weight_decay

Column = Sequence[int]


def inner(a: Column, b: Column) -> int:
    return sum(x * y for x, y in zip(a, b, strict=True))


def independent_column(num_replicas: int, chance: random.Random) -> list[int]:
    """As many replicas high as low, drawn without looking at other columns."""
    column = [1, -1] * (num_replicas // 2)
    chance.shuffle(column)
    return column


def slope(losses: Sequence[float], column: Column) -> float:
    """Least squares of the losses on one column."""
    mean = sum(losses) / len(losses)
    return sum(x * (y - mean) for x, y in zip(column, losses, strict=True)) / inner(column, column)


@given(n=st.integers(2, 40), data=st.data())
def test_every_column_is_balanced(n: int, data: st.DataObject) -> None:
    num_columns = data.draw(st.integers(1, min(n - 1, 6)))
    round = data.draw(st.integers(0, 999))
    for column in balanced_columns(n, num_columns, seed=1, round=round):
        assert sum(column) == 0
        assert sorted(column) == [-1] * (n // 2) + [0] * (n % 2) + [1] * (n // 2)


@pytest.mark.parametrize("num_replicas", [2, 4, 8, 16, 32])
def test_columns_of_a_power_of_two_are_orthogonal_up_to_n_minus_1(num_replicas: int) -> None:
    columns = balanced_columns(num_replicas, num_replicas - 1, seed=0, round=5)
    for i, a in enumerate(columns):
        assert all(inner(a, b) == 0 for b in columns[:i])


@pytest.mark.parametrize("num_replicas", [3, 5, 6, 7, 9, 10, 12, 20])
def test_two_columns_of_any_size_are_as_orthogonal_as_can_be(num_replicas: int) -> None:
    # N/2 odd: (1, 1), (1, -1), ... can't come equally often, so the overlap is 2. Odd N: 0 or 1.
    a, b = balanced_columns(num_replicas, 2, seed=0, round=0)
    bound = 2 if num_replicas % 4 == 2 else 1 if num_replicas % 2 else 0
    assert abs(inner(a, b)) <= bound


def test_columns_and_signs_change_from_round_to_round_by_seed() -> None:
    drawn = [balanced_columns(8, 2, seed=3, round=round) for round in range(20)]
    assert len(set(drawn)) > 10
    assert drawn == [balanced_columns(8, 2, seed=3, round=round) for round in range(20)]
    assert drawn != [balanced_columns(8, 2, seed=4, round=round) for round in range(20)]


@pytest.mark.parametrize("num_replicas", [4, 8, 16])
def test_the_regression_on_each_column_is_sharper_than_with_independent_columns(num_replicas: int) -> None:
    """Rate and weight decay change the loss by as much as its noise; the slopes are what is wanted."""
    chance = random.Random(num_replicas)
    effects = (1.0, -1.0)
    errors: dict[str, list[float]] = {"balanced": [], "independent": []}
    for round in range(4000):
        noise = [chance.gauss(0, 1) for _ in range(num_replicas)]
        designs = {
            "balanced": balanced_columns(num_replicas, 2, seed=0, round=round),
            "independent": [independent_column(num_replicas, chance) for _ in effects],
        }
        for name, columns in designs.items():
            losses = [
                3 + sum(e * column[r] for e, column in zip(effects, columns, strict=True)) + noise[r]
                for r in range(num_replicas)
            ]
            errors[name] += [slope(losses, c) - e for e, c in zip(effects, columns, strict=True)]
    rmse = {name: math.sqrt(sum(e * e for e in found) / len(found)) for name, found in errors.items()}
    print(f"N={num_replicas}: {rmse} ratio {rmse['balanced'] / rmse['independent']:.3f}")
    assert rmse["balanced"] <= 0.9 * rmse["independent"]


def test_more_columns_than_replicas_can_tell_apart_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"3 hyperparameters .* by 3 replicas; explore at most 2"):
        balanced_columns(3, 3, seed=0, round=0)


def test_a_run_with_too_many_hyperparameters_is_refused_before_its_first_step() -> None:
    explored = [weight_decay(), dropout()]
    start(make_config(Auto(), explored=explored), 3)
    with pytest.raises(ConfigError, match="3 hyperparameters"):
        start(make_config(Auto(alpha=0.1), explored=explored), 3)
    with pytest.raises(ConfigError, match="2 hyperparameters"):
        start(make_config(Fixed(alpha=0.0), explored=explored), 2)


def test_rate_and_weight_decay_are_explored_on_orthogonal_columns() -> None:
    config = make_config(Fixed(alpha=0.1), explored=[weight_decay(alpha=0.2)])
    _, plan = start(config, 8)
    rates, decays = plan.values["lr", 0], plan.values["weight_decay", 0]
    assert sorted(rates) == pytest.approx([0.9] * 4 + [1.1] * 4)
    assert sorted(decays) == pytest.approx([0.8] * 4 + [1.2] * 4)
    assert sum((a - 1) * (b - 1) for a, b in zip(rates, decays, strict=True)) == pytest.approx(0, abs=1e-15)


def test_with_fewer_replicas_than_columns_after_a_resize_the_run_goes_on() -> None:
    config = make_config(Fixed(alpha=0.1), explored=[weight_decay(), dropout()])
    state, plan = start(config, 4)
    _, plan = decide(state, make_report(plan, next_num_replicas=2))
    assert plan.phase == "fan_out"
    assert all(len(values) == 2 for values in plan.values.values())
