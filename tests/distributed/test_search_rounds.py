"""The search on real ranks: candidates train apart, everything is put back, the schedule goes on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from hdet_ray import Auto, HDETOneCycleLR, LocalControl, replay, value_at
from hdet_ray.core.replay import read_ledger
from tests.distributed import loops
from tests.distributed.ranks import run_on_ranks

STEPS = 200
SHORT = Auto(scout_steps=8, pair_steps=16, max_search_ratio=1.0, sync_every=20)


def _search(rank: int, ledger: str, max_lr: float, use_probe: bool) -> dict[str, Any]:
    model = loops.wrap(loops.make_net(dropout=0.1))
    optimizer = loops.make_optimizer("adamw", model)
    scheduler = HDETOneCycleLR(
        optimizer,
        max_lr=[max_lr, max_lr / 2],
        total_steps=STEPS,
        controller=SHORT,
        model=model,
        probe=loops.probe_of(model) if use_probe else None,
        control=LocalControl(ledger=ledger),
    )
    begun_with = [p.detach().clone() for p in model.parameters()]
    seen: dict[str, Any] = {"phases": [], "rates_agree": True, "put_back": [], "notes": []}

    def on_boundary(event: Any) -> None:
        seen["phases"].append(event.finished.phase)
        if event.finished.is_search:
            is_back = all(torch.equal(a, b) for a, b in zip(model.parameters(), begun_with, strict=True))
            seen["put_back"].append(is_back and not optimizer.state)
            seen["updates"] = [str(k) for k in optimizer.state]

    scheduler.on_boundary(on_boundary)

    def step(loss: torch.Tensor) -> None:
        scheduler.step(loss)
        plan, t = scheduler.plan, scheduler.last_epoch
        expected = [value_at(plan, "lr", g, rank, t) for g in range(2)]
        seen["rates_agree"] &= (
            [g["lr"] for g in optimizer.param_groups] == expected == scheduler.get_last_lr()
        )

    loops.train(model, optimizer, step, range(STEPS), rank)
    seen["found"] = max_lr * math.exp(scheduler.state.log_scale)
    seen["search_steps"] = scheduler.state.search_steps
    seen["last_epoch"] = scheduler.last_epoch
    seen["weights"] = [p.detach().clone() for p in model.parameters()]
    return seen


def test_a_search_from_far_below_finds_a_rate_and_puts_everything_back(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    outcomes = run_on_ranks(_search, 4, str(ledger), 1e-4, True, store_path=tmp_path)
    first = outcomes[0]
    assert first["phases"][:2] == ["scout", "scout"]
    assert first["phases"].count("pairs") >= 2
    assert first["phases"][-1] == "train"
    assert first["last_epoch"] == STEPS
    assert first["search_steps"] == 8 * first["phases"].count("scout") + 16 * first["phases"].count("pairs")
    assert first["found"] > 10 * 1e-4
    for outcome in outcomes:
        assert all(outcome["put_back"])
        assert outcome["rates_agree"]
        assert outcome["found"] == first["found"]
        assert loops.are_bit_equal(outcome["weights"], first["weights"])
    replayed = replay(read_ledger(ledger.read_text().splitlines()))
    assert replayed.departure is None
    assert replayed.rounds == len(first["phases"])


def test_without_a_probe_the_search_compares_training_losses(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    outcomes = run_on_ranks(_search, 3, str(ledger), 1e-3, False, store_path=tmp_path)
    assert outcomes[0]["phases"].count("pairs") >= 2
    assert all(loops.are_bit_equal(o["weights"], outcomes[0]["weights"]) for o in outcomes)
    points = read_ledger(ledger.read_text().splitlines()).items[0].report
    assert points.untrained_loss is not None
    assert all(r.probe_loss is None for r in points.replicas)
