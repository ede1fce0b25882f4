"""A run that is saved and goes on elsewhere ends where the unbroken one ends, to the last bit."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch

from hdet_ray import Auto, CheckpointError, Fixed, HDETOneCycleLR, Paper, value_at
from hdet_ray.config import Controller
from tests.distributed import loops
from tests.distributed.ranks import run_on_ranks

STEPS = 120
SEARCHING = Auto(alpha=1 / 9, scout_steps=8, pair_steps=16, max_search_ratio=1.0, sync_every=10)


def _build(controller: Controller, lr: float = 1e-3) -> tuple[Any, torch.optim.Optimizer, HDETOneCycleLR]:
    model = loops.wrap(loops.make_net())
    optimizer = loops.make_optimizer("adamw", model)
    scheduler = HDETOneCycleLR(
        optimizer,
        max_lr=[lr, 2 * lr],
        total_steps=STEPS,
        controller=controller,
        model=model,
        probe=loops.probe_of(model),
    )
    return model, optimizer, scheduler


def _save(model: Any, optimizer: torch.optim.Optimizer, scheduler: HDETOneCycleLR) -> bytes:
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict(), scheduler.state_dict()], file)
    return file.getvalue()


def _load(data: bytes, model: Any, optimizer: torch.optim.Optimizer, scheduler: HDETOneCycleLR) -> None:
    weights, moments, schedule = torch.load(io.BytesIO(data), weights_only=True)
    model.load_state_dict(weights)
    optimizer.load_state_dict(moments)
    scheduler.load_state_dict(schedule)


def _run_broken_and_unbroken(
    rank: int, controller: Controller, breaks: list[int]
) -> list[tuple[str, int, bool]]:
    model, optimizer, scheduler = _build(controller)
    saved: dict[int, tuple[str, bytes]] = {}

    def step(loss: torch.Tensor) -> None:
        scheduler.step(loss)
        if scheduler.iterations in breaks:
            saved[scheduler.iterations] = (scheduler.plan.phase, _save(model, optimizer, scheduler))

    loops.train(model, optimizer, step, range(STEPS), rank)
    unbroken = loops.fingerprint(model, optimizer)
    outcomes: list[tuple[str, int, bool]] = []
    for i, (phase, data) in saved.items():
        model, optimizer, scheduler = _build(
            controller, lr=0.5
        )  # whatever it was built with, the state decides
        _load(data, model, optimizer, scheduler)
        loops.train(model, optimizer, scheduler.step, range(i, STEPS), rank)
        outcomes.append((phase, i, loops.are_bit_equal(loops.fingerprint(model, optimizer), unbroken)))
    return outcomes


def test_a_run_broken_at_any_step_of_any_phase_ends_bit_equal(tmp_path: Path) -> None:
    breaks = [5, 8, 13, 30, 37, 48, 75, 90, 113]
    outcomes = run_on_ranks(_run_broken_and_unbroken, 3, SEARCHING, breaks, store_path=tmp_path)
    assert {phase for phase, _, _ in outcomes[0]} == {"scout", "pairs", "fan_out"}
    for per_rank in outcomes:
        assert [broken for broken in per_rank if not broken[2]] == []


@pytest.mark.parametrize(
    "controller",
    [
        Fixed(alpha=0.0, sync_every=10),
        Fixed(alpha=1 / 9, sync_every=10, gradient_sync="local"),
        Paper(sync_every=10, warmup_steps=20),
    ],
)
def test_other_controllers_resume_bit_equal_too(tmp_path: Path, controller: Controller) -> None:
    for per_rank in run_on_ranks(_run_broken_and_unbroken, 2, controller, [20, 33], store_path=tmp_path):
        assert [is_equal for _, _, is_equal in per_rank] == [True, True]


def _save_at(rank: int, step: int) -> bytes:
    model, optimizer, scheduler = _build(SEARCHING)
    loops.train(model, optimizer, scheduler.step, range(step), rank)
    return _save(model, optimizer, scheduler)


def _resume(rank: int, data: bytes, step: int) -> tuple[bool, int, float]:
    model, optimizer, scheduler = _build(SEARCHING)
    _load(data, model, optimizer, scheduler)
    agrees = True

    def check() -> None:
        nonlocal agrees
        expected = [value_at(scheduler.plan, "lr", g, rank, scheduler.last_epoch) for g in range(2)]
        agrees &= [group["lr"] for group in optimizer.param_groups] == expected

    check()
    first_step = scheduler.last_epoch
    loops.train(
        model, optimizer, lambda loss: (scheduler.step(loss), check()), range(first_step, STEPS), rank
    )
    return agrees, first_step, scheduler.state.log_scale


@pytest.mark.parametrize("step", [8, 80])
@pytest.mark.parametrize("num_ranks", [2, 3, 8])
def test_a_four_replica_checkpoint_resumes_at_other_sizes_with_the_schedules_rates(
    tmp_path: Path, num_ranks: int, step: int
) -> None:
    data = run_on_ranks(_save_at, 4, step, store_path=tmp_path)[0]
    outcomes = run_on_ranks(_resume, num_ranks, data, step, store_path=tmp_path)
    assert all(agrees for agrees, _, _ in outcomes)
    assert len({first for _, first, _ in outcomes}) == 1
    assert step - 10 < outcomes[0][1] <= step
    assert len({c for _, _, c in outcomes}) == 1


def test_a_state_of_other_groups_or_of_a_newer_version_is_refused() -> None:
    model = loops.make_net()
    optimizer = loops.make_optimizer("adamw", model)
    scheduler = HDETOneCycleLR(optimizer, max_lr=0.1, total_steps=STEPS, controller=Fixed(alpha=0.0))
    state = scheduler.state_dict()
    one_group = torch.optim.AdamW(loops.make_net().parameters())
    other = HDETOneCycleLR(one_group, max_lr=0.1, total_steps=STEPS, controller=Fixed(alpha=0.0))
    with pytest.raises(CheckpointError, match="2 parameter groups"):
        other.load_state_dict(state)
    with pytest.raises(CheckpointError, match="upgrade"):
        scheduler.load_state_dict({**state, "version": 99})
    with pytest.raises(CheckpointError, match="lacks"):
        scheduler.load_state_dict({k: v for k, v in state.items() if k != "schedule"})
