"""The base schedule equals torch's `OneCycleLR` in every bit, wherever torch's is defined."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.lr_scheduler import OneCycleLR

from hdet_ray.core.codec import from_json, to_json
from hdet_ray.core.one_cycle import OneCycle, per_group, resolve_total_steps
from hdet_ray.exceptions import ConfigError

Values = list[tuple[list[float], list[float]]]


@st.composite
def settings_of_one_cycle(draw: st.DrawFn, total_steps: st.SearchStrategy[int]) -> dict[str, Any]:
    """Arguments that both sides take; lists where torch takes a list."""
    steps = draw(total_steps)
    num_groups = draw(st.integers(1, 3))
    momentum = st.lists(st.floats(0, 0.999), min_size=num_groups, max_size=num_groups)
    rate = st.floats(1e-7, 1e3)
    # Fractions of the steps often end a phase exactly on a step, the case in which torch may divide by zero.
    on_a_step = st.integers(0, 2 * steps).map(lambda half_steps: half_steps / (2 * steps))
    return {
        "total_steps": steps,
        "max_lr": draw(st.lists(rate, min_size=num_groups, max_size=num_groups)),
        "pct_start": draw(st.one_of(st.floats(0, 1), on_a_step, st.just(0.3))),
        "anneal_strategy": draw(st.sampled_from(["cos", "linear"])),
        "cycle_momentum": draw(st.booleans()),
        "base_momentum": draw(momentum),
        "max_momentum": draw(momentum),
        "div_factor": draw(st.floats(0.5, 1e5)),
        "final_div_factor": draw(st.floats(0.5, 1e6)),
        "three_phase": draw(st.booleans()),
    }


def ours(arguments: dict[str, Any]) -> OneCycle:
    return OneCycle(**{k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()})


def values_of(cycle: OneCycle, total_steps: int | None = None) -> Values:
    """Rates and momenta of every group at each position ``0 .. total_steps``."""
    groups = range(len(cycle.max_lr))
    length = cycle.total_steps if total_steps is None else total_steps
    return [
        (
            [cycle.lr_at(group, position, total_steps) for group in groups],
            [cycle.momentum_at(group, position, total_steps) for group in groups]
            if cycle.cycle_momentum
            else [],
        )
        for position in range(length + 1)
    ]


def values_of_torch(arguments: dict[str, Any], optimizer_class: type[torch.optim.Optimizer]) -> Values:
    """The same from torch's scheduler, stepped to its end as a training loop does."""
    groups = [{"params": [torch.zeros(1)]} for _ in arguments["max_lr"]]
    key = "momentum" if optimizer_class is torch.optim.SGD else "betas"
    optimizer = optimizer_class(groups, lr=0.1, **({"momentum": 0.9} if key == "momentum" else {}))
    scheduler = OneCycleLR(optimizer, **arguments)
    values = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The optimizer never steps; the schedule doesn't depend on it.
        for position in range(arguments["total_steps"] + 1):
            if position > 0:
                scheduler.step()
            momenta = [group[key] if key == "momentum" else group[key][0] for group in optimizer.param_groups]
            values.append((scheduler.get_last_lr(), momenta if arguments["cycle_momentum"] else []))
    return values


def assert_same_as_torch(arguments: dict[str, Any], optimizer_class: type[torch.optim.Optimizer]) -> None:
    try:
        expected = values_of_torch(arguments, optimizer_class)
    except ZeroDivisionError:
        with pytest.raises(ConfigError, match="without length"):
            ours(arguments)
    else:
        assert values_of(ours(arguments)) == expected


@settings(max_examples=300)
@given(settings_of_one_cycle(st.integers(1, 60)), st.sampled_from([torch.optim.SGD, torch.optim.AdamW]))
def test_every_step_of_a_short_run_is_bit_equal_to_torch(
    arguments: dict[str, Any], optimizer_class: type[torch.optim.Optimizer]
) -> None:
    assert_same_as_torch(arguments, optimizer_class)


@settings(max_examples=15)
@given(
    settings_of_one_cycle(st.integers(1_000, 5_000)), st.sampled_from([torch.optim.SGD, torch.optim.AdamW])
)
def test_every_step_of_a_long_run_is_bit_equal_to_torch(
    arguments: dict[str, Any], optimizer_class: type[torch.optim.Optimizer]
) -> None:
    assert_same_as_torch(arguments, optimizer_class)


@pytest.mark.parametrize("three_phase", [False, True])
@pytest.mark.parametrize("total_steps", [1, 2, 3, 4, 5, 8, 10, 16])
def test_a_phase_of_zero_length_is_refused_exactly_where_torch_divides_by_zero(
    total_steps: int, three_phase: bool
) -> None:
    for half_steps in range(2 * total_steps + 1):
        arguments = {
            "total_steps": total_steps,
            "max_lr": [0.1],
            "pct_start": half_steps / (2 * total_steps),
            "cycle_momentum": False,
            "three_phase": three_phase,
        }
        assert_same_as_torch(arguments, torch.optim.SGD)


def test_the_refusal_of_a_phase_of_zero_length_says_what_to_choose() -> None:
    with pytest.raises(ConfigError, match=r"pct_start=0\.1 of total_steps=10 .* neither 1 nor total_steps"):
        OneCycle(total_steps=10, max_lr=(0.1,), pct_start=0.1, cycle_momentum=False)


@settings(max_examples=100)
@given(settings_of_one_cycle(st.integers(2, 60)), st.integers(1, 59))
def test_a_stretched_shape_is_the_shape_of_that_length(arguments: dict[str, Any], search_steps: int) -> None:
    try:
        whole = ours(arguments)
        rest = replace(whole, total_steps=max(1, whole.total_steps - search_steps))
    except ConfigError:
        return
    assert values_of(whole, rest.total_steps) == values_of(rest)


def test_a_stretch_that_leaves_a_phase_without_length_has_finished_it() -> None:
    whole = OneCycle(total_steps=40, max_lr=(0.1,), pct_start=0.1, cycle_momentum=False)
    with pytest.raises(ConfigError, match="without length"):
        replace(whole, total_steps=10)
    assert whole.lr_at(0, 0, 10) == pytest.approx(0.1)
    assert all(math.isfinite(rates[0]) for rates, _ in values_of(whole, 10))


def test_the_ends_of_the_shape_are_initial_max_and_min() -> None:
    cycle = OneCycle(total_steps=100, max_lr=(0.1, 0.5), pct_start=0.3, cycle_momentum=False)
    for group in (0, 1):
        peak = cycle.max_lr[group]
        assert cycle.lr_at(group, 0) == pytest.approx(peak / 25, rel=1e-12)
        assert cycle.initial_lr(group) == peak / 25
        assert cycle.lr_at(group, 29) == peak
        assert cycle.lr_at(group, 99) == cycle.min_lr(group) == peak / 25 / 1e4


@given(settings_of_one_cycle(st.integers(1, 10_000)))
def test_a_shape_survives_json(arguments: dict[str, Any]) -> None:
    try:
        cycle = ours(arguments)
    except ConfigError:
        return
    assert from_json(OneCycle, json.loads(json.dumps(to_json(cycle), allow_nan=False))) == cycle


def test_momenta_that_are_not_cycled_are_not_judged() -> None:
    cycle = OneCycle(
        total_steps=10, max_lr=(1,), cycle_momentum=False, base_momentum=(7.0,), max_momentum=(math.nan,)
    )
    assert cycle.base_momentum == cycle.max_momentum == ()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"total_steps": 0}, "total_steps=0 must be a positive integer"),
        ({"total_steps": -3}, "total_steps=-3"),
        ({"total_steps": 10.0}, r"total_steps=10\.0"),
        ({"pct_start": -0.1}, r"pct_start=-0\.1 must be a float in \[0, 1\]"),
        ({"pct_start": 1.1}, r"pct_start=1\.1"),
        ({"pct_start": 1}, "pct_start=1 must be a float"),
        ({"pct_start": math.nan}, "pct_start=nan"),
        ({"anneal_strategy": "cosine"}, "anneal_strategy='cosine' is unknown; use 'cos' or 'linear'"),
        ({"max_lr": ()}, "no parameter group"),
        ({"max_lr": (0.1, 0.0)}, r"max_lr=0\.0 of group 1 must be a finite number above 0"),
        ({"max_lr": (-0.1, 0.1)}, r"max_lr=-0\.1 of group 0"),
        ({"max_lr": (math.nan, 0.1)}, "max_lr=nan"),
        ({"max_lr": (0.1, math.inf)}, "max_lr=inf"),
        ({"max_lr": (0.1, "1e-3")}, "max_lr='1e-3'"),
        ({"max_lr": (1e300, 0.1), "div_factor": 1e-300}, "not finite"),
        ({"div_factor": 0.0}, r"div_factor=0\.0 must be a finite number above 0"),
        ({"div_factor": math.inf}, "div_factor=inf"),
        ({"final_div_factor": -1.0}, r"final_div_factor=-1\.0"),
        ({"final_div_factor": math.nan}, "final_div_factor=nan"),
        ({"base_momentum": (0.85,)}, "base_momentum has 1 values for 2 parameter groups"),
        ({"base_momentum": (0.85, -0.1)}, r"base_momentum=-0\.1 of group 1 must lie in \[0, 1\)"),
        ({"max_momentum": (1.0, 0.95)}, r"max_momentum=1\.0 of group 0"),
        ({"max_momentum": (math.nan, 0.95)}, "max_momentum=nan"),
    ],
)
def test_a_setting_outside_its_bounds_is_named_with_value_and_bound(
    changed: dict[str, Any], words: str
) -> None:
    good: dict[str, Any] = {
        "total_steps": 10,
        "max_lr": (0.1, 0.2),
        "base_momentum": (0.85, 0.85),
        "max_momentum": (0.95, 0.95),
    }
    with pytest.raises(ConfigError, match=words):
        OneCycle(**{**good, **changed})


def test_total_steps_goes_before_epochs() -> None:
    assert resolve_total_steps(7, 3, 5) == 7
    assert resolve_total_steps(None, 3, 5) == 15


@pytest.mark.parametrize(
    ("total_steps", "epochs", "steps_per_epoch", "words"),
    [
        (None, None, None, "give total_steps, or both"),
        (None, 3, None, "epochs=3 and steps_per_epoch=None"),
        (0, 3, 5, "total_steps=0"),
        (None, 0, 5, "epochs=0"),
        (None, 3, 2.5, r"steps_per_epoch=2\.5"),
    ],
)
def test_a_length_that_is_not_said_or_not_positive_is_refused(
    total_steps: Any, epochs: Any, steps_per_epoch: Any, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        resolve_total_steps(total_steps, epochs, steps_per_epoch)


def test_one_number_stands_for_all_groups_and_a_list_must_fit() -> None:
    assert per_group("max_lr", 0.1, 3) == (0.1, 0.1, 0.1)
    assert per_group("max_lr", [0.1, 0.2], 2) == (0.1, 0.2)
    with pytest.raises(ConfigError, match="max_lr has 2 values for 3 parameter groups"):
        per_group("max_lr", [0.1, 0.2], 3)
