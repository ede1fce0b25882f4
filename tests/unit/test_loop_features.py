"""What loops do beside the plain step: accumulation, scaled gradients, narrow floats, compilation."""

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
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from hdet_ray import Fixed, HDETOneCycleLR, HDETScheduler

STEPS = 40
PLAIN = Fixed(alpha=0.0, sync_every=8)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def adamw(model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.ndim > 1]},
            {"params": [p for p in model.parameters() if p.ndim < 2]},
        ],
        **{"lr": 0.05, **options},
    )


def ours(optimizer: torch.optim.Optimizer, **settings: Any) -> HDETOneCycleLR:
    return HDETOneCycleLR(
        optimizer, **{"max_lr": 0.05, "total_steps": STEPS, "controller": PLAIN, **settings}
    )


def torchs(optimizer: torch.optim.Optimizer, **settings: Any) -> OneCycleLR:
    return OneCycleLR(optimizer, **{"max_lr": 0.05, "total_steps": STEPS, **settings})


def loss_of(model: nn.Module, step: int) -> Tensor:
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
    return (model(x) - x.sum(1, keepdim=True).sin()).square().mean()


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: Callable[[Tensor], Any],
    steps: range = range(STEPS),
) -> list[Tensor]:
    for i in steps:
        loss = loss_of(model, i)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step(loss)
    return [p.detach().clone() for p in model.parameters()]


def are_equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def groups_of(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The parameter groups' numbers, tensors among them as numbers."""
    numbers = []
    for group in optimizer.param_groups:
        own = {name: value for name, value in group.items() if name != "params"}
        numbers.append({name: float(v) if isinstance(v, Tensor) else v for name, v in own.items()})
    return numbers


# ---------------------------------------------------------------------- one-cycle's own arguments


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


# ---------------------------------------------------------------------- the loop


def test_a_float_loss_is_as_good_as_a_tensor() -> None:
    reports = []
    for convert in (lambda loss: loss, lambda loss: loss.item()):
        model = net()
        optimizer = adamw(model)
        scheduler = ours(optimizer)
        seen: list[Any] = []
        scheduler.on_boundary(lambda event, seen=seen: seen.append(event.report.replicas))
        train(model, optimizer, lambda loss, s=scheduler, c=convert: s.step(c(loss)))
        reports.append(seen)
    assert len(reports[0]) == STEPS / 8
    for tensors, floats in zip(*reports, strict=True):
        assert tensors[0].loss == pytest.approx(floats[0].loss, rel=1e-6)


def test_accumulated_gradients_take_one_step_of_the_schedule_per_update() -> None:
    model = net()
    optimizer = adamw(model)
    scheduler = ours(optimizer)
    reference = adamw(net())
    expected = torchs(reference)
    for i in range(3 * STEPS):
        loss = loss_of(model, i) / 3
        loss.backward()
        if i % 3 == 2:
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step(loss)
            reference.step()
            expected.step()
            assert scheduler.get_last_lr() == expected.get_last_lr()
    assert scheduler.last_epoch == STEPS


def _scaled(
    scheduler: HDETOneCycleLR, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: Any, steps: range
) -> list[tuple[bool, int]]:
    """Train with scaled gradients: of each step, whether it was skipped and where the schedule then is."""
    seen = []
    for i in steps:
        loss = loss_of(model, i)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        before = [p.detach().clone() for p in model.parameters()]
        scaler.step(optimizer)
        scaler.update()
        scheduler.step(loss)
        is_skipped = are_equal(before, [p.detach() for p in model.parameters()])
        seen.append((is_skipped, scheduler.last_epoch))
    return seen


def test_a_step_that_the_scaler_skips_is_no_step_of_the_schedule() -> None:
    model = net()
    optimizer = adamw(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**140, growth_interval=10**6)
    scheduler = ours(optimizer, grad_scaler=scaler)
    seen = _scaled(scheduler, model, optimizer, scaler, range(STEPS + 20))
    skipped = [is_skipped for is_skipped, _ in seen]
    assert skipped[:3] == [True] * 3
    assert sum(skipped) == seen.index((False, 1))
    steps = [step for _, step in seen]
    assert steps == [sum(not s for s in skipped[: i + 1]) for i in range(len(skipped))]
    reference = adamw(net())
    expected = torchs(reference)
    for _ in range(steps[-1]):
        reference.step()
        expected.step()
    assert scheduler.get_last_lr() == expected.get_last_lr()


def test_a_scaler_that_is_not_passed_is_seen_from_the_first_update_on() -> None:
    model = net()
    optimizer = adamw(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100, growth_interval=2, growth_factor=2.0**60)
    scheduler = ours(optimizer)
    seen = _scaled(scheduler, model, optimizer, scaler, range(12))
    skipped = [is_skipped for is_skipped, _ in seen]
    first = skipped.index(False)
    assert any(skipped[first:])
    for (_, before), (is_skipped, after) in zip(seen[first:], seen[first + 1 :], strict=False):
        assert after == before + (not is_skipped)


def test_skipped_steps_at_a_rounds_end_are_taken_up_in_the_next() -> None:
    model = net()
    optimizer = adamw(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**140, growth_interval=10**6)
    scheduler = ours(optimizer, grad_scaler=scaler)
    reports = []
    scheduler.on_boundary(lambda event: reports.append((event.report.calls, event.report.steps)))
    seen = _scaled(scheduler, model, optimizer, scaler, range(40))
    assert [calls for calls, _ in reports] == [8] * 5
    assert sum(steps for _, steps in reports) == sum(not is_skipped for is_skipped, _ in seen)
    assert scheduler.state.step == scheduler.last_epoch < scheduler.state.calls == 40


def test_a_state_saved_among_skipped_steps_goes_on_bit_equal() -> None:
    def run(breaks_at: int | None) -> list[Tensor]:
        model = net()
        optimizer = adamw(model)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**140, growth_interval=10**6)
        scheduler = ours(optimizer, grad_scaler=scaler)
        if breaks_at is None:
            _scaled(scheduler, model, optimizer, scaler, range(STEPS))
            return [*(p.detach() for p in model.parameters()), torch.tensor(scheduler.get_last_lr())]
        _scaled(scheduler, model, optimizer, scaler, range(breaks_at))
        file = io.BytesIO()
        parts = (model, optimizer, scaler, scheduler)
        torch.save([part.state_dict() for part in parts], file)
        states = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
        model = net()
        optimizer = adamw(model)
        scaler = torch.amp.GradScaler("cpu")
        scheduler = ours(optimizer, grad_scaler=scaler)
        for part, state in zip((model, optimizer, scaler, scheduler), states, strict=True):
            part.load_state_dict(state)
        _scaled(scheduler, model, optimizer, scaler, range(breaks_at, STEPS))
        return [*(p.detach() for p in model.parameters()), torch.tensor(scheduler.get_last_lr())]

    unbroken = run(None)
    for breaks_at in (2, 8, 13):
        assert are_equal(run(breaks_at), unbroken)


@pytest.mark.parametrize("is_reported_narrow", [False, True])
def test_bfloat16_autocast_trains_as_under_torchs_schedule(is_reported_narrow: bool) -> None:
    results = []
    for make in (ours, torchs):
        model = net()
        optimizer = adamw(model)
        scheduler = make(optimizer)
        for i in range(STEPS):
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of(model, i)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if isinstance(scheduler, HDETOneCycleLR):
                scheduler.step(loss.bfloat16() if is_reported_narrow else loss)
            else:
                scheduler.step()
        results.append([p.detach() for p in model.parameters()])
    assert are_equal(*results)


@pytest.mark.parametrize("how", ["torch.compile(model)", "model.compile()"])
def test_a_compiled_model_trains_as_under_torchs_schedule(how: str) -> None:
    results = []
    for make in (ours, torchs):
        torch.compiler.reset()
        model = net()
        optimizer = adamw(model)
        compiled: Any = model
        if how == "model.compile()":
            model.compile(backend="aot_eager")
        else:
            compiled = torch.compile(model, backend="aot_eager")
        if make is ours:
            scheduler: Any = ours(optimizer, model=compiled)
            results.append(train(compiled, optimizer, scheduler.step))
        else:
            scheduler = torchs(optimizer)
            results.append(train(compiled, optimizer, lambda _loss, s=scheduler: s.step()))
    assert are_equal(*results)


def test_a_compiled_step_sees_each_rate_and_is_not_compiled_anew() -> None:
    results, counts = [], []
    for make in (ours, torchs):
        torch.compiler.reset()
        model = net()
        optimizer = adamw(model, lr=torch.tensor(0.05), foreach=True, capturable=False)
        rates = [group["lr"] for group in optimizer.param_groups]
        scheduler: Any = make(optimizer, cycle_momentum=False)
        compiled = torch.compile(optimizer.step, backend="aot_eager")
        history = []
        for i in range(STEPS):
            loss = loss_of(model, i)
            optimizer.zero_grad()
            loss.backward()
            compiled()
            scheduler.step(loss) if make is ours else scheduler.step()
            history.append([float(group["lr"]) for group in optimizer.param_groups])
            if i == 4:
                counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        assert all(group["lr"] is rate for group, rate in zip(optimizer.param_groups, rates, strict=True))
        results.append(([p.detach() for p in model.parameters()], history))
    assert counts[0] == counts[1]
    assert results[0][1] == pytest.approx(results[1][1])
    assert are_equal(results[0][0], results[1][0])


# ---------------------------------------------------------------------- bases of the user's own

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


# ---------------------------------------------------------------------- saving


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
