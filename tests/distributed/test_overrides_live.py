"""Overrides in a running job: in force on every replica from one boundary on, or not at all."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from hdet_ray import (
    Auto,
    Dropout,
    Fixed,
    HDETOneCycleLR,
    LocalControl,
    Override,
    OverrideError,
    WeightDecay,
    replay,
    value_at,
)
from hdet_ray.config import Controller
from hdet_ray.core.overrides import Freeze, Removal
from hdet_ray.core.plan import Plan
from hdet_ray.core.replay import read_ledger
from tests.distributed import loops
from tests.distributed.ranks import run_on_ranks

NUM_RANKS = 2
ROUND = 5
PLAIN = Fixed(alpha=0.0, sync_every=ROUND)
SPREAD = Fixed(alpha=1 / 9, sync_every=ROUND)
SEARCHING = Auto(scout_steps=8, pair_steps=16, max_search_ratio=1.0, sync_every=ROUND)


class Run:
    """What one rank's optimizer was set to at each step, while rank 0 hands in commands."""

    def __init__(
        self,
        rank: int,
        ledger: str,
        controller: Controller,
        steps: int,
        commands: dict[int, list[Any]],
        **settings: Any,
    ) -> None:
        control = LocalControl(ledger=ledger)
        model = loops.wrap(loops.make_net(dropout=0.2))
        optimizer = loops.make_optimizer("adamw", model)
        scheduler = HDETOneCycleLR(
            optimizer,
            max_lr=[0.01, 0.02],
            total_steps=steps,
            controller=controller,
            model=model,
            probe=loops.probe_of(model),
            control=control,
            **settings,
        )
        self.plans: list[Plan] = [scheduler.plan]
        self.agrees = True
        """The optimizer held what `value_at` says, at every step."""
        self.decay: list[list[float]] = [[g["weight_decay"] for g in optimizer.param_groups]]
        self.dropout: list[float] = [model.module[2].p]
        self.refused = ""

        def step(loss: torch.Tensor) -> None:
            i = scheduler.iterations
            for command in commands.get(i, ()) if rank == 0 else ():
                try:
                    control.submit(command)
                except OverrideError as error:
                    self.refused = str(error)
            scheduler.step(loss)
            plan, t = scheduler.plan, scheduler.last_epoch
            self.agrees &= [g["lr"] for g in optimizer.param_groups] == [
                value_at(plan, "lr", g, rank, t) for g in range(2)
            ]
            if scheduler.is_boundary:
                self.plans.append(plan)
                self.decay.append([g["weight_decay"] for g in optimizer.param_groups])
                self.dropout.append(model.module[2].p)

        loops.train(model, optimizer, step, range(steps), rank)
        self.overrides = {r.override.id: r.status for r in scheduler.state.overrides}

    def peaks(self, group: int) -> list[float]:
        """The group's peak rate in each round."""
        return [plan.peak["lr", group] for plan in self.plans[:-1]]


def _override(id: str, op: Any, value: float, hparam: str = "lr", **when: Any) -> Override:
    return Override(id=id, hparam=hparam, op=op, value=value, **when)


def _training(rank: int, folder: str) -> Run:
    """Rounds of 5 steps; what is handed in during round k is in force from round k + 1 on."""
    commands = {
        2: [_override("set", "set", 0.03, group=0, expires_after_rounds=2)],
        6: [_override("later", "scale", 0.5, apply_at_round=4)],
        26: [_override("group", "scale", 2.0, group=1)],
        31: [_override("taken back", "set", 0.05), _override("too much", "set", 1e6)],
        36: [Removal(id="taken back")],
    }
    return Run(rank, f"{folder}/training.jsonl", SPREAD, 50, commands)


def _others(rank: int, folder: str) -> Run:
    """The same for what is explored beside the rate."""
    commands = {
        2: [_override("decay", "set", 0.2, "weight_decay", expires_after_rounds=2)],
        6: [_override("dropout", "scale", 2.0, "dropout")],
    }
    settings = {"hyperparameters": [WeightDecay(alpha=0.0), Dropout(alpha=0.0)]}
    return Run(rank, f"{folder}/others.jsonl", PLAIN, 30, commands, **settings)


def _searching(rank: int, folder: str, name: str, command: Any) -> Run:
    """A command in the first scout."""
    return Run(rank, f"{folder}/{name}.jsonl", SEARCHING, 160, {3: [command]})


def _steer_all(rank: int, folder: str) -> dict[str, Run]:
    return {
        "training": _training(rank, folder),
        "others": _others(rank, folder),
        "set": _searching(rank, folder, "set", _override("found", "set", 0.04)),
        "scale": _searching(rank, folder, "scale", _override("lower", "scale", 0.5)),
        "freeze": _searching(rank, folder, "freeze", Freeze(hparam="lr", is_frozen=True)),
        "calm": Run(rank, f"{folder}/calm.jsonl", SEARCHING, 160, {}),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ledgers")


@pytest.fixture(scope="module")
def runs(folder: Path) -> list[dict[str, Run]]:
    return run_on_ranks(_steer_all, NUM_RANKS, str(folder), store_path=folder)


NAMES = ["training", "others", "set", "scale", "freeze", "calm"]


@pytest.mark.parametrize("name", NAMES)
def test_every_replica_follows_one_plan_and_its_optimizer_holds_the_plans_values(
    runs: list[dict[str, Run]], name: str
) -> None:
    for run in runs:
        assert run[name].agrees
        assert run[name].plans == runs[0][name].plans
        assert run[name].overrides == runs[0][name].overrides


@pytest.mark.parametrize("name", NAMES)
def test_the_ledger_of_a_steered_run_replays(runs: list[dict[str, Run]], folder: Path, name: str) -> None:
    replayed = replay(read_ledger((folder / f"{name}.jsonl").read_text().splitlines()))
    assert replayed.departure is None
    assert replayed.rounds == len(runs[0][name].plans) - 1


def test_a_set_pins_one_groups_peak_from_the_next_boundary_until_it_expires(
    runs: list[dict[str, Run]],
) -> None:
    run = runs[0]["training"]
    assert run.peaks(0)[:4] == [0.01, 0.03, 0.03, 0.01]
    assert run.peaks(1)[:4] == [0.02] * 4
    assert run.overrides["set"] == "expired"


def test_a_scale_waits_for_its_round_and_keeps_the_groups_ratio(runs: list[dict[str, Run]]) -> None:
    run = runs[0]["training"]
    assert run.peaks(0)[3:6] == pytest.approx([0.01, 0.005, 0.005])
    assert run.peaks(1)[3:6] == pytest.approx([0.02, 0.01, 0.01])


def test_a_scale_of_one_group_changes_its_ratio_for_good(runs: list[dict[str, Run]]) -> None:
    run = runs[0]["training"]
    assert run.peaks(0)[6] == pytest.approx(0.005)
    assert run.peaks(1)[6] == pytest.approx(0.02)
    assert run.peaks(1)[-1] == pytest.approx(0.02)


def test_what_is_removed_is_in_force_for_as_long_as_it_stood(runs: list[dict[str, Run]]) -> None:
    run = runs[0]["training"]
    assert run.peaks(0)[6:9] == pytest.approx([0.005, 0.05, 0.005])
    assert run.overrides["taken back"] == "removed"


def test_what_lies_outside_the_bounds_is_refused_where_it_is_handed_in(runs: list[dict[str, Run]]) -> None:
    assert "outside its bounds" in runs[0]["training"].refused
    assert "too much" not in runs[0]["training"].overrides


def test_a_replica_keeps_its_own_multiple_of_an_overridden_rate(runs: list[dict[str, Run]]) -> None:
    plan = runs[0]["training"].plans[1]
    rates = [value_at(plan, "lr", 0, replica, plan.step) for replica in range(NUM_RANKS)]
    assert max(rates) / min(rates) == pytest.approx((1 + 1 / 9) / (1 - 1 / 9))


def test_weight_decay_and_dropout_are_overridden_on_every_replica(runs: list[dict[str, Run]]) -> None:
    for run in runs:
        others = run["others"]
        assert [decay for decay, _ in others.decay[:5]] == [0.05, 0.2, 0.2, 0.05, 0.05]
        assert [decay for _, decay in others.decay] == [0.0] * len(others.decay)
        assert others.dropout[:4] == pytest.approx([0.2, 0.2, 0.4, 0.4])


def test_a_set_during_the_search_ends_it_at_the_next_boundary_at_that_value(
    runs: list[dict[str, Run]],
) -> None:
    plans = runs[0]["set"].plans
    assert [plan.phase for plan in plans[:3]] == ["scout", "train", "train"]
    assert plans[1].peak["lr", 0] == pytest.approx(0.04)
    assert plans[1].step == 8


def test_a_freeze_during_the_search_ends_it_at_the_best_so_far(runs: list[dict[str, Run]]) -> None:
    plans, calm = runs[0]["freeze"].plans, runs[0]["calm"].plans
    assert [plan.phase for plan in plans[:2]] == ["scout", "train"]
    tried = {round(math.log(calm[0].peak["lr", 0] * m / 0.01), 6) for m in calm[0].values["lr", 0]}
    assert round(math.log(plans[1].peak["lr", 0] / 0.01), 6) in tried


def test_a_scale_during_the_search_waits_for_its_end(runs: list[dict[str, Run]]) -> None:
    plans, calm = runs[0]["scale"].plans, runs[0]["calm"].plans
    searching = [plan.is_search for plan in calm]
    assert [plan.is_search for plan in plans] == searching
    first = searching.index(False)
    assert first > 2
    assert plans[first].peak["lr", 0] == pytest.approx(0.5 * calm[first].peak["lr", 0])
