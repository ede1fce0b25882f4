"""What loops do beside the plain step: accumulation, scaled gradients, narrow floats, compilation."""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from hdet_ray import HDETOneCycleLR, RollbackLimitError
from tests.unit.small_runs import STEPS, adamw, are_equal, groups_of, loss_of, net, ours, torchs, train


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


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


def test_a_nan_on_one_replica_alone_rolls_back_to_the_boundary_and_halves_the_rate() -> None:
    model = net()
    optimizer = adamw(model)
    scheduler = ours(optimizer, model=model)
    boundary = train(model, optimizer, scheduler.step, range(8))
    peak = scheduler.plan.peak["lr", 0]

    def spoil(loss: Tensor) -> None:
        with torch.no_grad():
            next(model.parameters()).fill_(math.nan)
        scheduler.step(math.nan)

    with pytest.warns(UserWarning, match="rolled back to the newest boundary: round 1: replica 0 nonfinite"):
        rolled_back = train(model, optimizer, spoil, range(8, 16))
    assert scheduler.is_boundary
    assert are_equal(rolled_back, boundary)
    assert scheduler.plan.peak["lr", 0] == pytest.approx(peak / 2)
    with pytest.raises(RollbackLimitError, match=r"4 rounds in a row.*replica 0 nonfinite"), _no_warnings():
        train(model, optimizer, spoil, range(16, STEPS))


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
        scaler.scale(4096 * loss).backward()  # so that 2^120 overflows for some steps
        before = [p.detach().clone() for p in model.parameters()]
        scaler.step(optimizer)
        scaler.update()
        scheduler.step(loss)
        is_skipped = are_equal(before, [p.detach() for p in model.parameters()])
        seen.append((is_skipped, scheduler.last_epoch))
    return seen


@pytest.mark.parametrize(
    "options", [{}, {"foreach": True}, {"fused": True}], ids=["plain", "foreach", "fused"]
)
def test_a_step_that_the_scaler_skips_is_no_step_of_the_schedule(options: dict[str, Any]) -> None:
    model = net()
    optimizer = adamw(model, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120, growth_interval=10**6)
    scheduler = ours(optimizer, grad_scaler=scaler)
    seen = _scaled(scheduler, model, optimizer, scaler, range(STEPS))
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
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100, growth_interval=2, growth_factor=2.0**18)
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
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120, growth_interval=10**6)
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
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120, growth_interval=10**6)
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


def test_a_compiled_step_sees_each_rate_and_is_compiled_as_often_as_under_torchs_schedule() -> None:
    results, counts, rates = [], [], []
    for make in (ours, torchs):
        torch.compiler.reset()
        counter = CompileCounterWithBackend("aot_eager")
        model = net()
        optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.05))
        rate = optimizer.param_groups[0]["lr"]
        scheduler: Any = make(optimizer, cycle_momentum=False)
        compiled = torch.compile(optimizer.step, backend=counter)
        history = []
        for i in range(STEPS):
            loss = loss_of(model, i)
            optimizer.zero_grad()
            loss.backward()
            compiled()
            scheduler.step(loss) if make is ours else scheduler.step()
            history.append(float(rate))
        assert scheduler.last_epoch == STEPS
        results.append([p.detach() for p in model.parameters()])
        counts.append(counter.frame_count)
        rates.append(history)
    assert rates[0] == rates[1]
    assert are_equal(*results)
    assert counts[0] == counts[1]


def test_groups_that_share_one_tensor_for_their_rates_get_their_own() -> None:
    histories = []
    for lr in (0.05, torch.tensor(0.05)):
        model = net()
        optimizer = adamw(model, lr=lr)  # torch hands the one tensor to both groups
        scheduler = ours(optimizer, max_lr=[0.05, 0.2])
        history = [groups_of(optimizer)]
        train(
            model,
            optimizer,
            lambda loss, s=scheduler, o=optimizer, h=history: (s.step(loss), h.append(groups_of(o))),
        )
        histories.append([[group["lr"] for group in groups] for groups in history])
    for floats, tensors in zip(*histories, strict=True):
        assert tensors == pytest.approx(floats)
