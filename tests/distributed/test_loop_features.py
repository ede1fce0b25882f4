"""What loops do beside the plain step, on real ranks: through a search, and between teams."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import OneCycleLR

from hdet_ray import Auto, Fixed, HDETOneCycleLR, value_at
from hdet_ray.config import Controller
from tests.distributed import loops
from tests.distributed.outcomes import are_equal_on_all_ranks, failed
from tests.distributed.ranks import run_on_ranks

STEPS = 120
PLAIN = Fixed(alpha=0.0, sync_every=10)
LOCAL = Fixed(alpha=1 / 9, sync_every=10, gradient_sync="local")
SEARCHING = Auto(scout_steps=8, pair_steps=16, max_search_ratio=1.0, sync_every=10)


def _make(
    controller: Controller, model: nn.Module | None = None, **settings: Any
) -> tuple[Any, Any, HDETOneCycleLR]:
    model = loops.wrap(loops.make_net()) if model is None else model
    optimizer = loops.make_optimizer("adamw", model)
    given = {"max_lr": 0.01, "total_steps": STEPS, "model": model, "probe": loops.probe_of(model), **settings}
    return model, optimizer, HDETOneCycleLR(optimizer, controller=controller, **given)


# ---------------------------------------------------------------------- accumulated gradients


def _accumulate(rank: int, model: DistributedDataParallel, optimizer: Any, step: Any) -> list[Tensor]:
    for i in range(2 * STEPS):
        is_update = i % 2 == 1
        x, y = loops.batch(i, rank)
        with contextlib.nullcontext() if is_update else model.no_sync():
            loss = nn.functional.mse_loss(model(x), y) / 2
            loss.backward()
        if is_update:
            optimizer.step()
            optimizer.zero_grad()
            step(loss)
    return loops.fingerprint(model, optimizer)


def _accumulate_plainly(rank: int) -> bool:
    model, optimizer, scheduler = _make(PLAIN)
    ours = _accumulate(rank, model, optimizer, scheduler.step)
    model = loops.wrap(loops.make_net())
    optimizer = loops.make_optimizer("adamw", model)
    torchs = OneCycleLR(optimizer, max_lr=0.01, total_steps=STEPS)
    return loops.are_bit_equal(ours, _accumulate(rank, model, optimizer, lambda _loss: torchs.step()))


def _accumulate_in_a_search(rank: int) -> dict[str, bool]:
    model, optimizer, scheduler = _make(SEARCHING)
    end = _accumulate(rank, model, optimizer, scheduler.step)
    return {
        "searched": scheduler.state.search_steps > 0,
        "ended": scheduler.last_epoch == STEPS and scheduler.is_boundary,
        "equal": are_equal_on_all_ranks(end),
    }


# ---------------------------------------------------------------------- scaled gradients


def _scale(
    rank: int,
    model: Any,
    optimizer: Any,
    scheduler: Any,
    scaler: Any,
    steps: int,
    spoiled: tuple[int, ...] = (),
) -> list[bool]:
    """Train with scaled gradients; whether each step was skipped. On rank 1 the spoiled ones overflow."""
    skipped = []
    for i in range(steps):
        x, y = loops.batch(i, rank, dtype=torch.float32)
        loss = nn.functional.mse_loss(model(x), y)
        factor = 2.0**72 if rank == 1 and i in spoiled else 2.0**12
        optimizer.zero_grad()
        scaler.scale(factor * loss).backward()
        before = next(model.parameters()).detach().clone()
        scaler.step(optimizer)
        scaler.update()
        skipped.append(torch.equal(before, next(model.parameters())))
        scheduler.step(loss)
    return skipped


def _scale_through_a_search(rank: int) -> dict[str, bool]:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120, growth_interval=10**6)
    model = loops.wrap(loops.make_net(dtype=torch.float32))
    probe = lambda k: nn.functional.mse_loss(*_predicted(model, k))  # noqa: E731
    model, optimizer, scheduler = _make(SEARCHING, model, grad_scaler=scaler, probe=probe)
    begun_with = scaler.state_dict()
    scales, reports = [], []

    def on_boundary(event: Any) -> None:
        if event.finished.is_search:
            scales.append(scaler.state_dict() == begun_with)
            reports.append(event.report.calls == event.report.steps)

    scheduler.on_boundary(on_boundary)
    skipped = _scale(rank, model, optimizer, scheduler, scaler, STEPS)
    search = scheduler.state.search_steps
    return {
        "skipped in the search": any(skipped[:search]),
        "scaler put back": bool(scales) and all(scales),
        "a skip in the search counts": all(reports),
        "none counts in training": scheduler.last_epoch == STEPS - sum(skipped[search:]),
        "skipped in training": any(skipped[search:]),
        "equal": are_equal_on_all_ranks(loops.fingerprint(model, optimizer)),
    }


def _predicted(model: nn.Module, k: int) -> tuple[Tensor, Tensor]:
    x, y = loops.batch(k, rank=10_000, size=64, dtype=torch.float32)
    return model(x), y


def _scale_apart(rank: int) -> dict[str, bool]:
    """Replicas that train apart: one skips where the others don't, and the schedule stays one."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**80, growth_interval=10**6)
    model = loops.wrap(loops.make_net(dtype=torch.float32))
    model, optimizer, scheduler = _make(LOCAL, model, grad_scaler=scaler, probe=None)
    skipped = _scale(rank, model, optimizer, scheduler, scaler, 30, spoiled=(4, 15))
    steps: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(steps, (scheduler.last_epoch, scheduler.state.step, scheduler.state.calls))
    return {
        "skipped on one rank": sum(skipped) > 0 if rank == 1 else sum(skipped) == 0,
        "one schedule": steps == [(30, 30, 30)] * len(steps),
        "equal weights": are_equal_on_all_ranks([p.detach() for p in model.parameters()]),
    }


# ---------------------------------------------------------------------- compiled models


def _compile(rank: int, how: str) -> dict[str, bool]:
    torch.compiler.reset()
    net = loops.make_net()
    if how == "inside":
        model: Any = loops.wrap(torch.compile(net, backend="eager"))  # type: ignore[arg-type]
    else:
        model = torch.compile(loops.wrap(net), backend="eager")
    model, optimizer, scheduler = _make(SEARCHING, model)
    loops.train(model, optimizer, scheduler.step, range(STEPS), rank)
    plain, plain_optimizer, plain_scheduler = _make(SEARCHING)
    loops.train(plain, plain_optimizer, plain_scheduler.step, range(STEPS), rank)
    return {
        "searched": scheduler.state.search_steps > 0,
        "equal": are_equal_on_all_ranks(loops.fingerprint(model, optimizer)),
        "as uncompiled": math.isclose(scheduler.state.log_scale, plain_scheduler.state.log_scale),
    }


def _tensor_rates(rank: int) -> bool:
    """A capturable optimizer's rate is one tensor for both groups, each of which needs its own."""
    model = loops.wrap(loops.make_net())
    groups = [{"params": [p for p in model.parameters() if p.ndim == d]} for d in (2, 1)]
    optimizer = torch.optim.AdamW(groups, lr=torch.tensor(0.01, dtype=torch.float64))
    scheduler = HDETOneCycleLR(
        optimizer, max_lr=[0.01, 0.03], total_steps=40, controller=Fixed(sync_every=10), model=model
    )
    agrees = []

    def step(loss: Tensor) -> None:
        scheduler.step(loss)
        rates = [value_at(scheduler.plan, "lr", g, rank, scheduler.last_epoch) for g in range(2)]
        agrees.append([float(group["lr"]) for group in optimizer.param_groups] == rates)

    loops.train(model, optimizer, step, range(40), rank)
    return all(agrees)


# ---------------------------------------------------------------------- one run after another


def _one_after_another(rank: int) -> dict[str, bool]:
    """A second run in the same process, on new modules, is what it would have been alone."""
    ends = []
    for _ in range(2):
        model, optimizer, scheduler = _make(SEARCHING)
        loops.train(model, optimizer, scheduler.step, range(STEPS), rank)
        ends.append(loops.fingerprint(model, optimizer))
    model, optimizer, first = _make(PLAIN)
    loops.train(model, optimizer, first.step, range(STEPS), rank)
    again = DistributedDataParallel(model.module)  # a DDP module takes one hook in its life
    second = HDETOneCycleLR(optimizer, max_lr=0.01, total_steps=STEPS, controller=LOCAL, model=again)
    loops.train(again, optimizer, second.step, range(STEPS), rank)
    return {
        "as alone": loops.are_bit_equal(*ends),
        "same module again": second.is_boundary
        and are_equal_on_all_ranks(loops.fingerprint(again, optimizer)),
    }


def _do_all(rank: int) -> dict[str, Any]:
    return {
        "accumulated": _accumulate_plainly(rank),
        "accumulated in a search": _accumulate_in_a_search(rank),
        "scaled through a search": _scale_through_a_search(rank),
        "scaled apart": _scale_apart(rank),
        "compiled inside": _compile(rank, "inside"),
        "compiled outside": _compile(rank, "outside"),
        "tensor rates": _tensor_rates(rank),
        "one after another": _one_after_another(rank),
    }


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_on_ranks(_do_all, 2, store_path=tmp_path_factory.mktemp("done"))


def test_accumulation_without_a_spread_is_bit_equal_to_ddp_with_torchs_one_cycle(
    done: list[dict[str, Any]],
) -> None:
    assert all(outcome["accumulated"] for outcome in done)


def test_a_search_works_with_accumulated_gradients(done: list[dict[str, Any]]) -> None:
    assert failed(done, "accumulated in a search") == []


def test_a_search_puts_the_scaler_back_and_counts_skipped_steps(done: list[dict[str, Any]]) -> None:
    assert failed(done, "scaled through a search") == []


def test_a_skip_on_one_of_several_replicas_does_not_hold_the_schedule_up(done: list[dict[str, Any]]) -> None:
    assert failed(done, "scaled apart") == []


@pytest.mark.parametrize("how", ["inside", "outside"])
def test_a_search_works_with_a_compiled_model(done: list[dict[str, Any]], how: str) -> None:
    assert failed(done, f"compiled {how}") == []


def test_tensor_rates_follow_the_plan_in_each_group(done: list[dict[str, Any]]) -> None:
    assert all(outcome["tensor rates"] for outcome in done)


def test_two_runs_one_after_another_do_not_disturb_each_other(done: list[dict[str, Any]]) -> None:
    assert failed(done, "one after another") == []


def _search_side_by_side(rank: int) -> tuple[float, list[Tensor]]:
    """Two runs of two ranks in one world of four, each with its own data."""
    pair, place = divmod(rank, 2)
    groups = [dist.new_group(ranks) for ranks in ([0, 1], [2, 3])]
    model = DistributedDataParallel(loops.make_net(), process_group=groups[pair])
    model, optimizer, scheduler = _make(
        SEARCHING, model, process_group=groups[pair], max_lr=[0.01, 0.003][pair]
    )
    loops.train(model, optimizer, scheduler.step, range(STEPS), place)
    return scheduler.state.log_scale, loops.fingerprint(model, optimizer)


def _search_alone(rank: int, max_lr: float) -> tuple[float, list[Tensor]]:
    model, optimizer, scheduler = _make(SEARCHING, max_lr=max_lr)
    loops.train(model, optimizer, scheduler.step, range(STEPS), rank)
    return scheduler.state.log_scale, loops.fingerprint(model, optimizer)


def test_two_runs_side_by_side_in_one_world_do_not_meet(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("side-by-side")
    together = run_on_ranks(_search_side_by_side, 4, store_path=folder)
    alone = [run_on_ranks(_search_alone, 2, max_lr, store_path=folder) for max_lr in (0.01, 0.003)]
    for (c, end), (expected_c, expected) in zip(together, [*alone[0], *alone[1]], strict=True):
        assert c == expected_c
        assert loops.are_bit_equal(end, expected)
