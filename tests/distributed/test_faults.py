"""A NaN or an exploding loss on one replica, in every phase."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from hdet_ray import Auto, Fixed, HDETOneCycleLR, LocalControl, Paper, RollbackLimitError
from hdet_ray.config import Controller
from hdet_ray.core.replay import read_ledger
from tests.distributed import loops
from tests.distributed.ranks import run_on_ranks

STEPS = 160
CULPRIT = 1
SEARCHING = Auto(scout_steps=8, pair_steps=16, max_search_ratio=1.0, sync_every=10)
SHARED = Fixed(alpha=1 / 9, sync_every=10)
LOCAL = Fixed(alpha=1 / 9, sync_every=10, gradient_sync="local")


def _train(
    rank: int, ledger: str, controller: Controller, kind: str, spoiled_steps: range, steps: int
) -> dict[str, Any]:
    model = loops.wrap(loops.make_net())
    optimizer = loops.make_optimizer("adamw", model)
    scheduler = HDETOneCycleLR(
        optimizer,
        max_lr=0.01,
        total_steps=steps,
        controller=controller,
        model=model,
        probe=loops.probe_of(model),
        control=LocalControl(ledger=ledger),
    )
    seen: dict[str, Any] = {
        "verdicts": [],
        "phases": [],
        "finite": [],
        "warnings": [],
        "error": None,
        "weights": [],
    }

    def on_boundary(event: Any) -> None:
        seen["verdicts"].append((event.finished.round, event.verdict))
        seen["phases"].append(event.finished.phase)
        seen["finite"].append(all(bool(torch.isfinite(p).all()) for p in model.parameters()))
        seen["weights"].append([p.detach().clone() for p in model.parameters()])

    def spoil(i: int, loss: torch.Tensor) -> torch.Tensor:
        if rank != CULPRIT or i not in spoiled_steps:
            return loss
        return loss * float("nan") if kind == "nan" else loss * 1e8

    scheduler.on_boundary(on_boundary)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            loops.train(model, optimizer, scheduler.step, range(steps), rank, spoil=spoil)
        except RollbackLimitError as error:
            seen["error"] = str(error)
    seen["warnings"] = [str(w.message) for w in caught]
    seen["c"] = scheduler.state.log_scale
    seen["final"] = [p.detach().clone() for p in model.parameters()]
    return seen


def _run(
    tmp_path: Path, controller: Controller, kind: str, spoiled: range, steps: int = STEPS
) -> list[dict[str, Any]]:
    return run_on_ranks(
        _train, 4, str(tmp_path / "ledger.jsonl"), controller, kind, spoiled, steps, store_path=tmp_path
    )


@pytest.mark.parametrize("kind", ["nan", "explosion"])
def test_in_a_scout_a_broken_candidate_is_dead_and_costs_nothing_else(tmp_path: Path, kind: str) -> None:
    outcomes = _run(tmp_path, SEARCHING, kind, range(6, 8))
    assert outcomes[0]["phases"][0] == "scout"
    assert all(all(o["finite"]) for o in outcomes)
    assert all(loops.are_bit_equal(o["final"], outcomes[0]["final"]) for o in outcomes)
    if kind == "nan":
        item = read_ledger((tmp_path / "ledger.jsonl").read_text().splitlines()).items[0]
        dead = [not r.is_finite for r in item.report.replicas]
        assert dead == [False, True, False, False]


def test_in_a_pair_a_nan_kills_the_candidates_team_and_nobody_else(tmp_path: Path) -> None:
    calm = _run(tmp_path, SEARCHING, "nan", range(0))
    first_pair = calm[0]["phases"].index("pairs")
    first_step = 8 * first_pair
    (tmp_path / "again").mkdir()
    outcomes = _run(tmp_path / "again", SEARCHING, "nan", range(first_step + 3, first_step + 4))
    items = read_ledger((tmp_path / "again" / "ledger.jsonl").read_text().splitlines()).items
    assert [r.is_finite for r in items[first_pair].report.replicas] == [False, False, True, True]
    assert all(all(o["finite"]) for o in outcomes)


@pytest.mark.parametrize("kind", ["nan", "explosion"])
def test_in_a_local_round_a_broken_replica_is_left_out_and_takes_the_mean_of_the_others(
    tmp_path: Path, kind: str
) -> None:
    spoiled = range(25, 30)  # the last half of round 2
    outcomes = _run(tmp_path, LOCAL, kind, spoiled)
    calm_dir = tmp_path / "calm"
    calm_dir.mkdir()
    calm = _run(calm_dir, LOCAL, kind, range(0))
    verdict = dict(outcomes[0]["verdicts"])[2]
    assert verdict.weights == (1.0, 0.0, 1.0, 1.0)
    assert verdict.reasons[CULPRIT] == ("nonfinite" if kind == "nan" else "exploded")
    assert not verdict.rolls_back
    assert all(all(o["finite"]) for o in outcomes)
    after = outcomes[0]["weights"][2]
    assert all(loops.are_bit_equal(o["weights"][2], after) for o in outcomes)
    # The rounds before it were undisturbed, and no other replica's loss saw the broken one.
    assert loops.are_bit_equal(outcomes[0]["weights"][1], calm[0]["weights"][1])


@pytest.mark.parametrize(
    "controller", [SHARED, Fixed(alpha=0.0, sync_every=10), Paper(sync_every=10, warmup_steps=10)]
)
def test_in_a_shared_round_a_nan_rolls_all_back_and_names_who_brought_it(
    tmp_path: Path, controller: Controller
) -> None:
    outcomes = _run(tmp_path, controller, "nan", range(24, 25))
    verdict = dict(outcomes[0]["verdicts"])[2]
    assert verdict.rolls_back
    assert verdict.culprits == (CULPRIT,)
    for outcome in outcomes:
        assert all(outcome["finite"])
        assert loops.are_bit_equal(outcome["weights"][2], outcome["weights"][1])
    assert any("replica 1 nonfinite" in w for w in outcomes[0]["warnings"])


def test_in_a_shared_round_an_exploding_loss_rolls_all_back_and_names_who_brought_it(tmp_path: Path) -> None:
    outcomes = _run(tmp_path, SHARED, "explosion", range(27, 30))
    verdict = dict(outcomes[0]["verdicts"])[2]
    assert verdict.rolls_back
    assert CULPRIT in verdict.culprits
    assert all(loops.are_bit_equal(o["weights"][2], o["weights"][1]) for o in outcomes)


def test_after_the_search_a_rollback_lowers_c(tmp_path: Path) -> None:
    calm = _run(tmp_path, SEARCHING, "nan", range(0))
    begins = 8 * calm[0]["phases"].count("scout") + 16 * calm[0]["phases"].count("pairs")
    (tmp_path / "again").mkdir()
    outcomes = _run(tmp_path / "again", SEARCHING, "nan", range(begins + 3, begins + 4))
    assert outcomes[0]["c"] == pytest.approx(calm[0]["c"] - 0.7)


def test_a_repeated_nan_fails_on_every_rank_with_the_evidence(tmp_path: Path) -> None:
    outcomes = _run(tmp_path, SHARED, "nan", range(20, STEPS))
    for outcome in outcomes:
        assert outcome["error"] is not None
        assert "4 rounds in a row" in outcome["error"]
        assert "replica 1 nonfinite" in outcome["error"]
