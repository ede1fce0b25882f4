"""Every schedule as torch has it: one-cycle with all of its arguments, other bases, saved and loaded."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from hdet_ray import HDETOneCycleLR, HDETScheduler
from tests.unit.small_runs import PLAIN, STEPS, adamw, are_equal, groups_of, net, ours, torchs, train


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_lr": [0.05, 0.2], "base_momentum": [0.8, 0.7], "max_momentum": [0.9, 0.95]},
        {"total_steps": None, "epochs": 5, "steps_per_epoch": 8},
        {"three_phase": True, "pct_start": 0.2, "anneal_strategy": "linear"},
        {"cycle_momentum": False, "div_factor": 10, "final_div_factor": 3.0},
    ],
    ids=["defaults", "lists", "epochs", "three phases", "no momentum"],
)
@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_every_entry_that_torchs_one_cycle_writes_is_written_alike(
    kind: str, settings: dict[str, Any]
) -> None:
    histories = []
    for make in (ours, torchs):
        model = net()
        optimizer = adamw(model)
        if kind == "sgd":
            optimizer = torch.optim.SGD(
                [{"params": [p]} for p in list(model.parameters())[:2]], lr=0.05, momentum=0.9
            )
        scheduler = make(optimizer, **settings)
        history = [(groups_of(optimizer), scheduler.get_last_lr(), scheduler.last_epoch, scheduler.base_lrs)]

        def step(loss: Tensor, o: Any = optimizer, s: Any = scheduler, h: Any = history) -> None:
            s.step(loss) if isinstance(s, HDETOneCycleLR) else s.step()
            h.append((groups_of(o), s.get_last_lr(), s.last_epoch, s.base_lrs))

        train(model, optimizer, step)
        histories.append(history)
    assert histories[0] == histories[1]


def test_a_schedule_taken_up_at_a_last_epoch_goes_on_as_torchs_does() -> None:
    histories = []
    for make in (ours, torchs):
        model = net()
        optimizer = adamw(model)
        first = make(optimizer)
        for _ in range(10):
            optimizer.step()
            first.step()
        second = make(optimizer, last_epoch=first.last_epoch)
        history = [second.last_epoch, groups_of(optimizer)]
        for _ in range(STEPS - second.last_epoch):
            optimizer.step()
            second.step()
            history += [second.last_epoch, groups_of(optimizer)]
        with pytest.raises(ValueError, match=r"(?s)step.*total"):
            second.step()
        histories.append(history)
    assert histories[0] == histories[1]


def test_it_is_one_of_torchs_schedulers() -> None:
    assert isinstance(ours(adamw(net())), LRScheduler)
    assert isinstance(HDETScheduler(torchs(adamw(net())), STEPS, controller=PLAIN), LRScheduler)


Base = Callable[[torch.optim.Optimizer], LRScheduler]

BASES: dict[str, Base] = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, step_size=7, gamma=0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [5, 20], gamma=0.3),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, gamma=0.93),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=STEPS),
    "LambdaLR with a warm-up": lambda o: lr_scheduler.LambdaLR(o, lambda t: min(1.0, t / 10)),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o,
        [lr_scheduler.LinearLR(o, 0.1, total_iters=10), lr_scheduler.CosineAnnealingLR(o, STEPS - 10)],
        milestones=[10],
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.5, total_iters=5), lr_scheduler.ExponentialLR(o, 0.9)], o
    ),
    "OneCycleLR": torchs,
}


@pytest.mark.parametrize("name", BASES)
def test_around_any_base_nothing_changes_where_nothing_is_spread(name: str) -> None:
    results = []
    for is_ours in (True, False):
        model = net()
        optimizer = adamw(model)
        base = BASES[name](optimizer)
        scheduler = HDETScheduler(base, STEPS, controller=PLAIN) if is_ours else base
        history = [(groups_of(optimizer), scheduler.get_last_lr())]

        def step(loss: Tensor, o: Any = optimizer, s: Any = scheduler, h: Any = history) -> None:
            s.step(loss) if isinstance(s, HDETScheduler) else s.step()
            h.append((groups_of(o), s.get_last_lr()))

        results.append((train(model, optimizer, step), history))
    assert are_equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("breaks_at", [8, 13])
def test_around_any_base_a_saved_state_goes_on_bit_equal(name: str, breaks_at: int) -> None:
    def parts() -> tuple[nn.Module, torch.optim.Optimizer, HDETScheduler]:
        model = net()
        optimizer = adamw(model)
        return model, optimizer, HDETScheduler(BASES[name](optimizer), STEPS, controller=PLAIN)

    model, optimizer, scheduler = parts()
    unbroken = train(model, optimizer, scheduler.step)
    model, optimizer, scheduler = parts()
    train(model, optimizer, scheduler.step, range(breaks_at))
    saved = [part.state_dict() for part in (model, optimizer, scheduler)]
    copied = pickle.loads(pickle.dumps(saved))
    train(
        model, optimizer, scheduler.step, range(breaks_at, STEPS)
    )  # what was saved is no view of what goes on
    resumed = parts()
    for part, state in zip(resumed, copied, strict=True):
        part.load_state_dict(state)
    assert resumed[2].last_epoch == breaks_at
    assert are_equal(train(resumed[0], resumed[1], resumed[2].step, range(breaks_at, STEPS)), unbroken)


@pytest.mark.parametrize("breaks_at", [0, 8, 13, STEPS])
def test_a_state_travels_through_pickle_json_and_a_file_of_weights(breaks_at: int) -> None:
    model = net()
    optimizer = adamw(model)
    scheduler = ours(optimizer, model=model)
    train(model, optimizer, scheduler.step, range(breaks_at))
    state = scheduler.state_dict()
    file = io.BytesIO()
    torch.save(state, file)
    assert torch.load(io.BytesIO(file.getvalue()), weights_only=True) == state
    assert pickle.loads(pickle.dumps(state)) == state
    other = ours(adamw(net()))
    other.load_state_dict(state)
    assert (other.last_epoch, other.get_last_lr()) == (breaks_at, scheduler.get_last_lr())


@pytest.mark.parametrize("is_optimizer_first", [True, False])
def test_optimizer_and_schedule_are_loaded_in_either_order(is_optimizer_first: bool) -> None:
    model = net()
    optimizer = adamw(model)
    scheduler = ours(optimizer)
    train(model, optimizer, scheduler.step, range(13))
    saved = [part.state_dict() for part in (model, optimizer, scheduler)]
    weights, moments, schedule = copy.deepcopy(saved)  # what an optimizer loads it may keep and write to
    other_model = net()
    other_model.load_state_dict(weights)
    other_optimizer = adamw(other_model)
    other = ours(other_optimizer)
    if is_optimizer_first:
        other_optimizer.load_state_dict(moments)
    other.load_state_dict(schedule)
    if not is_optimizer_first:
        other_optimizer.load_state_dict(moments)
    assert groups_of(other_optimizer) == groups_of(optimizer)
    rest = range(13, STEPS)
    assert are_equal(
        train(other_model, other_optimizer, other.step, rest), train(model, optimizer, scheduler.step, rest)
    )
    assert groups_of(other_optimizer) == groups_of(optimizer)


def test_a_second_schedule_on_the_same_model_and_optimizer_follows_the_first() -> None:
    results = []
    for make in (ours, torchs):
        model = net()
        optimizer = adamw(model)
        for _ in range(2):
            for group in optimizer.param_groups:
                group.pop("initial_lr", None)
            scheduler: Any = make(optimizer, **({"model": model} if make is ours else {}))
            train(model, optimizer, scheduler.step if make is ours else lambda _loss, s=scheduler: s.step())
        results.append([p.detach() for p in model.parameters()])
    assert are_equal(*results)


def test_a_loop_that_steps_before_its_optimizer_is_warned_by_nobody() -> None:
    optimizer = adamw(net())
    scheduler = ours(optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
        scheduler.step()
