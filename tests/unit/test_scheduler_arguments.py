"""The schedulers' arguments in one process: what can't work is refused with value, bound and remedy."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau, StepLR

from hdet_ray import (
    Auto,
    CheckpointError,
    ConfigError,
    Fixed,
    HDETOneCycleLR,
    HDETScheduler,
    Paper,
    Thresholds,
)
from hdet_ray.optim.mesh import check_ranks_per_replica

STEPS = 40
PLAIN = Fixed(alpha=0.0)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.1), nn.Linear(4, 1))


def make(trained: nn.Module | None = None, **settings: Any) -> HDETOneCycleLR:
    parameters = (trained or net()).parameters()
    optimizer = settings.pop("optimizer", None) or torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    return HDETOneCycleLR(optimizer, **{"max_lr": 0.1, "total_steps": STEPS, "controller": PLAIN, **settings})


def around(base: Any = None, **settings: Any) -> HDETScheduler:
    base = base or StepLR(torch.optim.SGD(net().parameters(), lr=0.1), step_size=10)
    return HDETScheduler(base, **{"total_steps": STEPS, "controller": PLAIN, **settings})


def train(model: nn.Module, optimizer: torch.optim.Optimizer, step: Callable[[Tensor], Any]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        loss = model(torch.randn(4, 3, generator=generator)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step(loss)
    return [p.detach() for p in model.parameters()]


def _warned(run: Callable[[], Any]) -> tuple[Any, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = run()
    return result, [str(w.message) for w in caught]


@pytest.mark.parametrize("controller", ["auto", "fixed", Auto(alpha=1 / 9), Fixed(gradient_sync="local")])
def test_one_replica_alone_warns_once_and_trains_as_torchs_one_cycle(controller: Any) -> None:
    def ours() -> list[Tensor]:
        model = net()
        optimizer = torch.optim.AdamW(model.parameters())
        scheduler = make(optimizer=optimizer, controller=controller, model=model)
        return train(model, optimizer, scheduler.step)

    def torchs() -> list[Tensor]:
        model = net()
        optimizer = torch.optim.AdamW(model.parameters())
        scheduler = OneCycleLR(optimizer, max_lr=0.1, total_steps=STEPS)
        return train(model, optimizer, lambda _loss: scheduler.step())

    weights, (note,) = _warned(ours)
    assert "nobody to be compared with" in note
    assert "start at least 2 replicas" in note
    assert all(torch.equal(a, b) for a, b in zip(weights, torchs(), strict=True))


def test_one_replica_alone_follows_the_papers_decay_and_warns_once() -> None:
    def ours() -> HDETOneCycleLR:
        model = net()
        scheduler = make(model, controller=Paper(sync_every=5, warmup_steps=10), model=model)
        train(model, scheduler.optimizer, scheduler.step)
        return scheduler

    scheduler, (note,) = _warned(ours)
    assert "controller='paper' trains without looking around" in note
    assert scheduler.last_epoch == STEPS
    assert scheduler.state.rates is not None


def test_one_replica_alone_that_spreads_nothing_has_nothing_to_be_warned_of() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(controller=PLAIN)


@pytest.mark.parametrize("value", [-0.1, 1.0, 2, math.nan, "0.1"])
@pytest.mark.parametrize("kind", [Auto, Paper, Fixed])
def test_alpha_outside_its_range_is_refused(kind: Any, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"alpha={value!r} must lie in \[0, 1\).*1/9 is the paper's"):
        kind(alpha=value)


@pytest.mark.parametrize(
    ("value", "words"), [(0, "no step to train"), (-3, "at least 1"), (2.5, "an integer")]
)
@pytest.mark.parametrize("kind", [Auto, Paper, Fixed])
def test_sync_every_below_1_is_refused(kind: Any, value: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=f"sync_every={value}.*{words}"):
        kind(sync_every=value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"controller": Fixed(sync_every=STEPS + 1)}, r"sync_every=41 .*total_steps=40.*use at most 40"),
        ({"controller": Paper(warmup_steps=STEPS + 1)}, "warmup_steps=41 is longer than the run"),
        ({"controller": "adaptive"}, "controller='adaptive' is unknown; use 'auto', 'paper', 'fixed'"),
        ({"controller": None}, "controller=None is unknown"),
        ({"max_lr": 0.0}, "max_lr=0.0 of group 0 must be a finite number above 0"),
        ({"max_lr": -1e-3}, "max_lr=-0.001 of group 0"),
        ({"max_lr": math.nan}, "max_lr=nan of group 0"),
        ({"max_lr": math.inf}, "max_lr=inf of group 0"),
        (
            {"max_lr": [0.1, 0.2]},
            "max_lr has 2 values for 1 parameter groups; give one number, or one per group",
        ),
        ({"max_lr": None}, "max_lr=None of group 0 must be a finite number"),
        ({"bounds": {"lr": (0.2, 1.0)}}, r"max_lr=0.1 of group 0 lies outside bounds\['lr'\].*widen"),
        (
            {"bounds": {"lr": (1.0, 0.01)}},
            r"bounds \(1.0, 0.01\) of lr must be finite and above 0, low below high",
        ),
        ({"bounds": {"lr": (0.0, 1.0)}}, r"bounds \(0.0, 1.0\) of lr"),
        ({"bounds": {"lr": (-1.0, 1.0)}}, r"bounds \(-1.0, 1.0\) of lr"),
        ({"bounds": {"lr": (math.nan, 1.0)}}, r"bounds \(nan, 1.0\) of lr"),
        ({"bounds": {"lr": (1e-3, math.inf)}}, r"bounds \(0.001, inf\) of lr"),
        ({"bounds": {"lr": 0.1}}, r"bounds\['lr'\]=0.1 must be a pair of numbers, \(low, high\)"),
        ({"bounds": {"lr": (0.1,)}}, r"bounds\['lr'\]=\(0.1,\) must be a pair"),
        ({"bounds": {"lr": ("a", "b")}}, r"must be a pair of numbers"),
        ({"bounds": {"weight_decay": (0.1, 1.0)}}, r"bounds names \['weight_decay'\]; only 'lr'"),
        ({"total_steps": 0}, "total_steps=0 must be a positive integer"),
        ({"total_steps": -5}, "total_steps=-5 must be a positive integer"),
        ({"total_steps": 10.5}, "total_steps=10.5 must be a positive integer"),
        ({"total_steps": None}, "total_steps=None .*give total_steps, or both"),
        ({"total_steps": None, "epochs": 3, "steps_per_epoch": 0}, "steps_per_epoch=0 must be a positive"),
        ({"pct_start": 1.5}, r"pct_start=1.5 must be a float in \[0, 1\]"),
        ({"anneal_strategy": "step"}, "anneal_strategy='step' is unknown"),
        ({"div_factor": 0.0}, "div_factor=0.0 must be a finite number above 0"),
        ({"base_momentum": 1.0}, r"base_momentum=1.0 of group 0 must lie in \[0, 1\)"),
        ({"max_momentum": [0.9, 0.8]}, "max_momentum has 2 values for 1"),
        ({"last_epoch": STEPS}, r"last_epoch=40 lies outside -1 .. 39"),
        ({"last_epoch": -2}, r"last_epoch=-2 lies outside"),
        ({"probe_samples": 0}, "probe_samples=0 must be at least 1"),
        ({"max_rollbacks": -1}, "max_rollbacks=-1 must be at least 0"),
        (
            {"warm_noise": -0.01},
            "warm_noise=-0.01 must be a finite number of at least 0; 0.01 is the paper's",
        ),
        ({"warm_noise": math.nan}, "warm_noise=nan"),
        ({"probe": lambda k: 0.0}, "probe= needs model="),
        ({"hyperparameters": ["temperature"]}, "hyperparameter 'temperature' is unknown; use one of"),
        (
            {"hyperparameters": "dropout"},
            r"hyperparameters='dropout' is one alone; pass a list: \['dropout'\]",
        ),
        ({"hyperparameters": ["weight_decay"]}, "weight_decay is 0 in every parameter group"),
        ({"hyperparameters": 3}, "TypeError: 'int' object is not iterable"),
        ({"optimizer": net()}, "optimizer=Sequential is none; pass a torch.optim.Optimizer"),
    ],
)
def test_what_cannot_work_is_refused_with_its_bound(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make(**settings)


@pytest.mark.parametrize("name", ["own_noise_z", "peer_z", "explosion_z"])
@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf])
def test_thresholds_are_positive_numbers(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{name}={value} must be a finite number above 0"):
        Thresholds(**{name: value})


def test_a_regularizer_needs_a_probe_to_be_judged_by() -> None:
    model = net()
    with pytest.raises(ConfigError, match=r"'dropout' regularizes.*pass probe=, a loss on validation data"):
        make(model, model=model, hyperparameters=["dropout"])
    with pytest.raises(ConfigError, match=r"probe=0.5 can't be called"):
        make(model, model=model, probe=0.5)


def test_an_optimizer_without_momentum_has_none_to_cycle() -> None:
    optimizer = torch.optim.Adagrad(net().parameters())
    with pytest.raises(ConfigError, match=r"Adagrad has neither momentum nor betas.*cycle_momentum=False"):
        make(optimizer=optimizer)
    assert make(optimizer=optimizer, cycle_momentum=False).get_last_lr() == [pytest.approx(0.1 / 25)]


@pytest.mark.parametrize(
    "settings", [{"process_group": object()}, {"mesh": object()}], ids=["process_group", "mesh"]
)
def test_a_group_without_torch_distributed_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"not initialized; call torch.distributed.init_process_group"):
        make(**settings)


def test_several_processes_without_torch_distributed_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ConfigError, match=r"WORLD_SIZE=4 but torch.distributed is not initialized"):
        make()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert make().plan.num_replicas == 1


@pytest.mark.parametrize(
    ("world_size", "group_size", "words"),
    [
        (6, 4, "6 ranks can't be divided into replicas of 4; use 4 ranks"),
        (2, 3, "use 3 ranks"),
        (4, 0, "ranks_per_replica=0 must be at least 1"),
    ],
)
def test_a_world_that_the_group_size_does_not_divide_is_refused(
    world_size: int, group_size: int, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        check_ranks_per_replica(world_size, group_size)


@pytest.mark.parametrize(
    "base",
    [
        lambda: ReduceLROnPlateau(torch.optim.SGD(net().parameters())),
        lambda: make(),
        lambda: torch.optim.SGD(net().parameters()),
    ],
    ids=["plateau", "ours", "optimizer"],
)
def test_a_base_that_cannot_be_followed_is_refused(base: Callable[[], Any]) -> None:
    with pytest.raises(ConfigError, match="can't be followed step by step; pass a torch LRScheduler"):
        around(base())


@pytest.mark.parametrize("total_steps", [0, None, 2.5])
def test_a_base_of_ones_own_needs_the_number_of_steps(total_steps: Any) -> None:
    with pytest.raises(ConfigError, match="total_steps="):
        around(total_steps=total_steps)


@pytest.mark.parametrize("loss", [torch.ones(2), torch.ones(2, 2), torch.ones(0), "0.5", [0.5]])
def test_a_loss_that_is_not_one_number_is_refused_and_the_schedule_stays(loss: Any) -> None:
    scheduler = make()
    before = scheduler.state_dict()
    with pytest.raises(ConfigError, match="pass the batch's mean loss"):
        scheduler.step(loss)
    assert scheduler.state_dict() == before


@pytest.mark.parametrize(
    "loss", [0.5, 1, torch.tensor(0.5), torch.ones(1), torch.tensor(0.5, dtype=torch.bfloat16), math.nan]
)
def test_any_one_number_is_a_loss(loss: Any) -> None:
    scheduler = make()
    scheduler.step(loss)
    assert scheduler.last_epoch == 1


def test_a_step_past_the_end_is_refused_and_changes_nothing() -> None:
    model = net()
    scheduler = make(model)
    train(model, scheduler.optimizer, scheduler.step)
    before, rates = scheduler.state_dict(), scheduler.get_last_lr()
    for _ in range(2):
        with pytest.raises(ValueError, match="step 41 lies past total_steps=40; stop the loop there"):
            scheduler.step(0.5)
    assert (scheduler.state_dict(), scheduler.get_last_lr()) == (before, rates)
    assert scheduler.is_boundary


def _paths(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every entry of nested dictionaries."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield (*path, key)
            yield from _paths(item, (*path, key))


def _without(state: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    cut = copy.deepcopy(state)
    inner = cut
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return cut


def _saved_in_mid_round() -> tuple[HDETOneCycleLR, dict[str, Any]]:
    scheduler = make(controller=Fixed(alpha=0.0, sync_every=4))
    for _ in range(6):
        scheduler.step(0.5)
    return make(controller=Fixed(alpha=0.0, sync_every=4)), scheduler.state_dict()


@pytest.mark.parametrize("path", list(_paths(_saved_in_mid_round()[1])), ids="/".join)
def test_a_state_that_lacks_anything_is_refused_and_changes_nothing(path: tuple[str, ...]) -> None:
    scheduler, state = _saved_in_mid_round()
    before = scheduler.state_dict()
    cut = _without(state, path)
    try:
        scheduler.load_state_dict(cut)
    except CheckpointError:
        assert scheduler.state_dict() == before
    else:
        # What an older release did not have yet stands for its default.
        assert scheduler.state_dict()["schedule"].keys() == state["schedule"].keys()


@pytest.mark.parametrize(
    "state",
    [None, [], {}, {"version": "1"}, {"version": 1}],
    ids=["nothing", "a list", "empty", "no version", "only a version"],
)
def test_a_state_that_is_none_is_refused(state: Any) -> None:
    with pytest.raises(CheckpointError, match="state"):
        make().load_state_dict(state)


@pytest.mark.parametrize("name", ["base", "base_steps", "own_rates"])
def test_a_state_without_its_base_is_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match=rf"lacks \['{name}'\]"):
        around().load_state_dict(_without(around().state_dict(), (name,)))


def test_a_state_of_the_other_class_is_refused() -> None:
    with pytest.raises(CheckpointError, match="use the class that saved it"):
        make().load_state_dict(around().state_dict())
    with pytest.raises(CheckpointError, match=r"lacks.*another class"):
        around().load_state_dict(make().state_dict())


def test_a_state_of_other_groups_is_refused() -> None:
    model = net()
    groups = [{"params": [p]} for p in model.parameters()]
    other = make(optimizer=torch.optim.SGD(groups, lr=0.1, momentum=0.9))
    with pytest.raises(CheckpointError, match="4 parameter groups, this optimizer 1; build the optimizer as"):
        make().load_state_dict(other.state_dict())


def test_a_loaded_state_says_how_long_the_run_is() -> None:
    scheduler = make(total_steps=60)
    scheduler.load_state_dict(make().state_dict())
    assert scheduler.total_steps == STEPS
