"""Hyperparameters: found, bounded, set where they live, and refused with a remedy."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from hdet_ray.exceptions import ConfigError
from hdet_ray.optim.hyperparameters import (
    AttentionTemperature,
    Betas,
    BoundHyperparameter,
    Dropout,
    Handle,
    Hyperparameter,
    HyperparameterLike,
    LabelSmoothing,
    Momentum,
    WeightDecay,
    resolve,
    set_momentum,
    set_rate,
)


def model() -> nn.Module:
    return nn.Sequential(
        nn.Linear(2, 2), nn.Dropout(0.2), nn.Dropout2d(0.1), nn.Dropout(0.0), nn.Linear(2, 2)
    )


def adamw(**options: Any) -> torch.optim.Optimizer:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    groups = [{"params": first.parameters()}, {"params": second.parameters(), "weight_decay": 0.3}]
    return torch.optim.AdamW(groups, **{"lr": 0.1, "weight_decay": 0.1, **options})


def sgd(**options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(nn.Linear(2, 2).parameters(), **{"lr": 0.1, "momentum": 0.9, **options})


def bind(
    *given: HyperparameterLike | str,
    optimizer: torch.optim.Optimizer | None = None,
    cycle_momentum: bool = False,
    has_probe: bool = True,
) -> list[BoundHyperparameter]:
    return resolve(given, optimizer or adamw(), model(), cycle_momentum=cycle_momentum, has_probe=has_probe)


def own(**changes: Any) -> Hyperparameter:
    return Hyperparameter(
        "own", **{"setter": lambda value: None, "bounds": (0.1, 10.0), "base": 1.0, **changes}
    )


def test_weight_decay_is_one_number_for_each_parameter_group() -> None:
    optimizer = adamw()
    first, second = bind("weight_decay", optimizer=optimizer)
    assert [(hp.name, hp.group, hp.base, hp.scale) for hp in (first, second)] == [
        ("weight_decay", 0, 0.1, "log"),
        ("weight_decay", 1, 0.3, "log"),
    ]
    second.set(0.7)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.7]
    assert second.get() == 0.7


def test_groups_without_weight_decay_stay_without() -> None:
    optimizer = adamw(weight_decay=0.0)
    assert [hp.group for hp in bind(WeightDecay(), optimizer=optimizer)] == [1]


def test_a_setter_survives_a_loaded_optimizer_state() -> None:
    optimizer = adamw()
    hp = bind("weight_decay", optimizer=optimizer)[0]
    optimizer.load_state_dict(optimizer.state_dict())
    hp.set(0.4)
    assert optimizer.param_groups[0]["weight_decay"] == 0.4


def test_momentum_and_betas_are_set_in_their_group() -> None:
    optimizer = adamw()
    beta1, beta2 = (bind(Betas(index, groups=[1]), optimizer=optimizer)[0] for index in (0, 1))
    beta1.set(0.8)
    beta2.set(0.95)
    assert (beta1.name, beta2.name) == ("beta1", "beta2")
    assert [group["betas"] for group in optimizer.param_groups] == [(0.9, 0.999), (0.8, 0.95)]

    optimizer = sgd()
    (momentum,) = bind("momentum", optimizer=optimizer)
    momentum.set(0.7)
    assert optimizer.param_groups[0]["momentum"] == 0.7


@pytest.mark.parametrize("name", ["beta1", "beta2"])
def test_the_whole_spread_of_a_beta_lies_inside_its_bounds(name: str) -> None:
    hp = bind(name)[0]
    low, high = hp.bounds
    assert low <= hp.base * (1 - hp.alpha) < hp.base * (1 + hp.alpha) <= high


def test_dropout_moves_every_layer_in_proportion_and_leaves_zeros() -> None:
    net = model()
    (hp,) = Dropout().bind(adamw(), net)
    assert hp.base == 0.2
    hp.set(0.4)
    assert [layer.p for layer in net if hasattr(layer, "p")] == [0.4, 0.2, 0.0]
    assert hp.get() == 0.4


def test_dropout_of_one_module_leaves_the_rest_alone() -> None:
    net = nn.ModuleList([model(), model()])
    (hp,) = Dropout(net[1]).bind(adamw(), net)
    hp.set(0.6)
    assert (net[0][1].p, net[1][1].p) == (0.2, 0.6)


def test_handles_are_read_as_numbers_and_as_one_tensor() -> None:
    temperature, smoothing = Handle(1.0), Handle(0.1)
    tensor = temperature.tensor
    first, second = bind(AttentionTemperature(temperature), LabelSmoothing(smoothing))
    first.set(1.5)
    second.set(0.2)
    assert (float(temperature), smoothing.value, tensor.item()) == (1.5, 0.2, 1.5)
    assert temperature.tensor is tensor
    assert (first.get(), second.get()) == (1.5, 0.2)


def test_a_user_s_setter_is_called_with_what_is_set() -> None:
    calls: list[float] = []
    (hp,) = bind(own(setter=calls.append))
    assert (hp.get(), calls) == (1.0, [])
    hp.set(2.5)
    assert (hp.get(), calls) == (2.5, [2.5])


def test_settings_reach_the_bound_form() -> None:
    (hp,) = bind(own(alpha=0.3, sigma=0.2, step_size=0.1, momentum=0.5, scale="linear", group=4))
    assert (hp.alpha, hp.sigma, hp.step_size, hp.momentum, hp.scale, hp.group) == (
        0.3,
        0.2,
        0.1,
        0.5,
        "linear",
        4,
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base": 0.0, "scale": "linear", "bounds": (-1.0, 1.0)}, "base=0.0 has no multiples"),
        ({"base": math.nan}, "base=nan has no multiples"),
        ({"base": None}, "base=None; give the value"),
        ({"base": 20.0}, r"base=20.0 lies outside its bounds \(0.1, 10.0\); widen"),
        ({"bounds": (10.0, 0.1)}, "no interval"),
        ({"bounds": (math.nan, 1.0)}, "no interval"),
        ({"bounds": (0.1, math.inf)}, "no interval"),
        ({"bounds": (0.0, 2.0)}, "which no log scale does"),
        ({"scale": "cubic"}, "scale='cubic' is unknown; use 'log' or 'linear'"),
        ({"alpha": 1.0}, r"alpha=1.0 must be in \[0, 1\)"),
        ({"alpha": -0.1}, r"alpha=-0.1 must be in \[0, 1\)"),
        ({"alpha": math.nan}, r"alpha=nan must be in \[0, 1\)"),
        ({"sigma": 0.0}, "sigma=0.0 must be finite and above 0"),
        ({"step_size": math.inf}, "step_size=inf must be finite"),
        ({"momentum": 1.0}, r"momentum=1.0 must be in \[0, 1\)"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        bind(own(**changes))


@pytest.mark.parametrize("name", ["lr", "", "two words"])
def test_a_name_that_reports_cannot_carry_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="must be an identifier"):
        bind(Hyperparameter(name, lambda value: None, bounds=(0.1, 1.0), base=0.5))


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'weight_deacy' is unknown; use one of 'weight_decay', 'dropout'"):
        bind("weight_deacy")


@pytest.mark.parametrize(
    ("name", "optimizer"), [("momentum", sgd()), ("beta1", adamw())], ids=["momentum", "beta1"]
)
def test_what_one_cycle_moves_itself_is_not_explored(name: str, optimizer: torch.optim.Optimizer) -> None:
    with pytest.raises(ConfigError, match=f"{name}.*cycle_momentum=False"):
        bind(name, optimizer=optimizer, cycle_momentum=True)
    assert bind(name, optimizer=optimizer, cycle_momentum=False)


def test_the_second_beta_is_not_moved_by_one_cycle() -> None:
    assert bind("beta2", cycle_momentum=True)


@pytest.mark.parametrize(
    "given", ["weight_decay", "dropout", LabelSmoothing(Handle(0.1)), own(is_regularizer=True)]
)
def test_a_regularizer_needs_a_probe(given: HyperparameterLike | str) -> None:
    with pytest.raises(ConfigError, match="pass probe=, a loss on validation data"):
        bind(given, has_probe=False)


def test_a_temperature_needs_no_probe() -> None:
    assert bind(AttentionTemperature(Handle(1.0)), has_probe=False)


def test_the_same_target_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="'weight_decay' of group 1 is given twice"):
        bind(WeightDecay(groups=[1]), "weight_decay", WeightDecay(groups=[0], base=0.2))
    assert len(bind(own(group=0), own(group=1))) == 2


@pytest.mark.parametrize(
    ("given", "optimizer", "words"),
    [
        (WeightDecay(groups=[2]), adamw(), "parameter group 2 does not exist; use 0 … 1"),
        (WeightDecay(groups=[-1]), adamw(), "parameter group -1 does not exist"),
        ("weight_decay", sgd(), "weight_decay is 0 in every parameter group"),
        ("momentum", adamw(), "AdamW has no 'momentum' in parameter group 0; explore 'beta1' instead"),
        ("momentum", sgd(momentum=0.0), "base=0.0 has no multiples"),
        ("beta1", sgd(), "SGD has no 'betas' in parameter group 0; leave it out"),
        (Betas(2), adamw(), "names no beta"),  # type: ignore[arg-type]
        (Dropout(nn.Linear(1, 1)), adamw(), "Linear has no nn.Dropout"),
    ],
)
def test_a_target_that_is_not_there_is_refused(
    given: HyperparameterLike | str, optimizer: torch.optim.Optimizer, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        bind(given, optimizer=optimizer)


def test_dropout_without_a_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="pass model= to the scheduler"):
        resolve(["dropout"], adamw(), None, cycle_momentum=False, has_probe=True)


def test_momentum_still_means_sgd_s_own() -> None:
    assert bind(Momentum(bounds=(0.5, 0.95)), optimizer=sgd())[0].bounds == (0.5, 0.95)


def test_a_tensor_rate_is_written_in_place() -> None:
    rate = torch.tensor(0.1)
    group: dict[str, Any] = {"lr": rate}
    set_rate(group, 0.25)
    assert group["lr"] is rate
    assert rate.item() == 0.25
    group = {"lr": 0.1}
    set_rate(group, 0.3)
    assert group["lr"] == 0.3


def test_momentum_is_the_first_beta_where_there_are_betas() -> None:
    beta = torch.tensor(0.9)
    groups: list[dict[str, Any]] = [{"betas": (0.9, 0.99)}, {"momentum": 0.9}, {"betas": (beta, 0.99)}]
    for group in groups:
        set_momentum(group, 0.5)
    assert groups[:2] == [{"betas": (0.5, 0.99)}, {"momentum": 0.5}]
    assert groups[2]["betas"][0] is beta
    assert beta.item() == 0.5
    with pytest.raises(ConfigError, match="neither 'betas' nor 'momentum'"):
        set_momentum({"lr": 0.1}, 0.5)
