"""Rate, weight decay, dropout and a number of the user's own, explored together on real replicas."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hdet_ray import (
    AttentionTemperature,
    Auto,
    Dropout,
    Handle,
    HDETOneCycleLR,
    Hyperparameter,
    Paper,
    WeightDecay,
    value_at,
)
from hdet_ray.config import Controller
from hdet_ray.core.codec import HParamKey
from hdet_ray.core.plan import Plan
from hdet_ray.core.state import ScheduleState
from hdet_ray.optim.rounds import BoundaryEvent
from tests.distributed import loops
from tests.distributed.ranks import run_on_ranks
from tests.reference.paper import gap, softmax_weights

NUM_RANKS = 4
SIGMA = 1e-3
"""Small, so that what the probe prefers shows in a few rounds."""
DECAY, DROPOUT, NOISE, RATE = ("weight_decay", 0), ("dropout", 0), ("input_noise", 0), ("lr", 0)


class Noisy(nn.Module):
    """A net with dropout, whose inputs get noise as strong as a user's setter says, and scaled logits."""

    def __init__(self) -> None:
        super().__init__()
        self.net = loops.make_net(dropout=0.2)
        self.noise = 0.1
        self.temperature = Handle(1.0)

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.linspace(-1, 1, x.shape[1], dtype=x.dtype) * self.noise
        return self.net(x + noise) / self.temperature.value

    def set_noise(self, value: float) -> None:
        self.noise = value


@dataclass(frozen=True)
class Seen:
    """One boundary, as a rank saw it."""

    finished: Plan
    plan: Plan
    losses: list[float]
    state: ScheduleState


class Run:
    """What a rank's targets held at every step, beside what the plan says."""

    def __init__(self, rank: int, controller: Controller, steps: int, *, has_handle: bool) -> None:
        self.rank = rank
        self.net = Noisy()
        self.model = loops.wrap(self.net)
        self.optimizer = loops.make_optimizer("adamw", self.model)
        noise = Hyperparameter("input_noise", self.net.set_noise, base=0.1, bounds=(1e-3, 1.0), sigma=SIGMA)
        handle = AttentionTemperature(self.net.temperature, sigma=SIGMA)
        self.scheduler = HDETOneCycleLR(
            self.optimizer,
            max_lr=0.01,
            total_steps=steps,
            controller=controller,
            model=self.model,
            probe=loops.probe_of(self.model),
            hyperparameters=[WeightDecay(sigma=SIGMA), Dropout(sigma=SIGMA), handle if has_handle else noise],
        )
        self.third: HParamKey = ("attention_temperature", 0) if has_handle else NOISE
        self.seen: list[Seen] = []
        self.held: list[bool] = []
        self.searching: set[tuple[float, ...]] = set()
        self.scheduler.on_boundary(self._note)
        loops.train(self.model, self.optimizer, self._step, range(steps), rank)

    def _note(self, event: BoundaryEvent) -> None:
        losses = [math.nan if r.probe_loss is None else r.probe_loss for r in event.report.replicas]
        self.seen.append(Seen(event.finished, event.plan, losses, event.state))

    def _step(self, loss: Tensor) -> None:
        self.scheduler.step(loss)
        plan, t = self.scheduler.plan, self.scheduler.last_epoch
        third = self.net.temperature.value if self.third != NOISE else self.net.noise
        held = {
            RATE: self.optimizer.param_groups[0]["lr"],
            DECAY: self.optimizer.param_groups[0]["weight_decay"],
            DROPOUT: self.net.net[2].p,
            self.third: third,
        }
        self.held.append(all(v == value_at(plan, *key, self.rank, t) for key, v in held.items()))
        if plan.is_search:
            self.searching.add((held[DECAY], held[DROPOUT], third))
        self.others = [group["weight_decay"] for group in self.optimizer.param_groups[1:]]

    def told(self) -> dict[str, Any]:
        """What a test looks at."""
        return {
            "seen": self.seen,
            "held": self.held,
            "searching": self.searching,
            "third": self.third,
            "others": self.others,
            "weights": [p.detach() for p in self.model.parameters()],
        }


def _explore_all(rank: int) -> dict[str, Any]:
    searching = Auto(scout_steps=8, pair_steps=16, max_search_ratio=1.0, sync_every=8)
    return {
        "auto": Run(rank, searching, 140, has_handle=False).told(),
        "paper": Run(rank, Paper(sync_every=8, warmup_steps=16), 80, has_handle=True).told(),
    }


@pytest.fixture(scope="module")
def explored(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_on_ranks(_explore_all, NUM_RANKS, store_path=tmp_path_factory.mktemp("explored"))


MODES = pytest.mark.parametrize("mode", ["auto", "paper"])


@MODES
def test_every_target_holds_its_replicas_value_at_every_step(
    explored: list[dict[str, Any]], mode: str
) -> None:
    for told in explored:
        assert all(told[mode]["held"])
        assert told[mode]["others"] == [0.0]  # the group without weight decay stays without


@MODES
def test_values_fan_out_along_columns_in_training(explored: list[dict[str, Any]], mode: str) -> None:
    told = explored[0][mode]
    rounds = [seen.finished for seen in told["seen"] if not seen.finished.is_search]
    assert len(rounds) >= 5
    for plan in rounds:
        assert plan.phase == "fan_out"
        for key in (DECAY, DROPOUT, told["third"]):
            assert len(set(plan.values[key])) > 1
            assert math.fsum(plan.values[key]) == pytest.approx(NUM_RANKS)
            assert max(plan.values[key]) == pytest.approx(1 + 1 / 9)


def test_the_default_controllers_columns_are_balanced_against_each_other(
    explored: list[dict[str, Any]],
) -> None:
    told = explored[0]["auto"]
    for seen in told["seen"]:
        if seen.finished.is_search:
            continue
        columns = [[m - 1 for m in seen.finished.values[key]] for key in (DECAY, DROPOUT, told["third"])]
        for i, a in enumerate(columns):
            assert all(
                math.fsum(x * y for x, y in zip(a, b, strict=True)) == pytest.approx(0) for b in columns[:i]
            )


def test_the_papers_columns_are_permutations_of_one_spread(explored: list[dict[str, Any]]) -> None:
    told = explored[0]["paper"]
    orders = {key: set() for key in (RATE, DECAY, DROPOUT, told["third"])}
    for seen in told["seen"]:
        for key, found in orders.items():
            found.add(seen.finished.values[key])
            assert sorted(seen.finished.values[key]) == pytest.approx([8 / 9, 26 / 27, 28 / 27, 10 / 9])
    assert all(len(found) > 2 for found in orders.values())


def test_nothing_but_the_rate_differs_during_the_search(explored: list[dict[str, Any]]) -> None:
    for told in explored:
        assert told["auto"]["searching"] == {(0.05, 0.2, 0.1)}
    plans = [seen.finished for seen in explored[0]["auto"]["seen"] if seen.finished.is_search]
    assert len(plans) >= 4
    assert all(plan.base[DECAY] == 0.05 for plan in plans)


@MODES
def test_base_values_move_by_the_papers_equations_on_probe_losses(
    explored: list[dict[str, Any]], mode: str
) -> None:
    told = explored[0][mode]
    velocity = dict.fromkeys((DECAY, DROPOUT, told["third"]), 0.0)
    base = {DECAY: 0.05, DROPOUT: 0.2, told["third"]: 0.1 if mode == "auto" else 1.0}
    moved = set()
    for seen in told["seen"]:
        is_waiting = mode == "paper" and seen.finished.step < 16
        if not (seen.finished.is_search or is_waiting):
            weights = softmax_weights(seen.losses, SIGMA)
            for key in velocity:
                to, back = (math.log, math.exp) if key != DROPOUT else (float, float)
                tried = [to(base[key] * m) for m in seen.finished.values[key]]
                velocity[key] = 0.9 * velocity[key] + (1 - 0.9) * gap(tried, weights)
                base[key] = back(to(base[key]) + 0.5 * velocity[key])
                moved.add(key)
        for key, value in base.items():
            assert seen.state.explored[key] == pytest.approx(value, rel=1e-9)
            assert seen.plan.base[key] == seen.state.explored[key]
    assert moved == set(velocity)
    assert all(abs(base[key] / start - 1) > 1e-4 for key, start in {DECAY: 0.05, DROPOUT: 0.2}.items())


@MODES
def test_probes_are_of_the_weights_before_the_mean_and_the_run_ends_as_one_model(
    explored: list[dict[str, Any]], mode: str
) -> None:
    fan_out = [
        seen for seen in explored[0][mode]["seen"] if seen.finished.probe and not seen.finished.is_search
    ]
    assert fan_out
    assert all(len(set(seen.losses)) > 1 for seen in fan_out)  # after the mean all would be alike
    for told in explored:
        assert loops.are_bit_equal(told[mode]["weights"], explored[0][mode]["weights"])
