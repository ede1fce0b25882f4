"""How far replicas went apart, told at boundaries that end in an average, on real ranks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hdet_ray import Auto, Fixed, HDETOneCycleLR
from hdet_ray.config import Controller
from hdet_ray.optim.rounds import BoundaryEvent
from tests.distributed import loops
from tests.distributed.outcomes import are_equal_on_all_ranks, everyones, failed
from tests.distributed.ranks import run_on_ranks

NUM_RANKS = 3
ROUND = 5
LOCAL = Fixed(alpha=1 / 9, sync_every=ROUND, gradient_sync="local")


class Watched:
    """A run of some rounds that keeps what it had just before each boundary, and what was told there."""

    def __init__(
        self, rank: int, controller: Controller, *, spoiled: int | None = None, converges: bool = False
    ) -> None:
        self.model = loops.wrap(loops.make_net(batch_norm=True))
        self.optimizer = loops.make_optimizer("adamw", self.model)
        self.scheduler = HDETOneCycleLR(
            self.optimizer, max_lr=0.02, total_steps=400, controller=controller, model=self.model
        )
        self.before: list[list[Tensor]] = []
        self.after: list[list[Tensor]] = []
        self.events: list[BoundaryEvent] = []
        self._is_spoiled = spoiled == rank
        self._converges = converges  # just before the boundary, which then finds one model
        self.scheduler.on_boundary(self._note)
        self.scheduler.on_report(lambda: {"samples": 8.0 + rank})

    def train(self, rank: int, steps: int) -> Watched:
        def step(loss: Tensor) -> None:
            if self.scheduler.iterations % ROUND == ROUND - 1:
                if self._is_spoiled:
                    with torch.no_grad():
                        next(iter(self.model.parameters())).fill_(float("nan"))
                if self._converges:
                    self.scheduler.converge()
                self.before.append([p.detach().clone() for p in self.model.parameters()])
            self.scheduler.step(loss)

        loops.train(self.model, self.optimizer, step, range(steps), rank)
        return self

    def _note(self, event: BoundaryEvent) -> None:
        self.events.append(event)
        self.after.append([p.detach().clone() for p in self.model.parameters()])


def _definition(everyone: list[list[Tensor]], included: list[int]) -> float:
    flat = [torch.cat([t.double().flatten() for t in everyone[r]]) for r in included]
    mean = torch.stack(flat).mean(0)
    return max(float((f - mean).norm() / mean.norm()) for f in flat)


def _look(rank: int) -> dict[str, dict[str, bool]]:
    run = Watched(rank, LOCAL).train(rank, 2 * ROUND)
    converged = Watched(rank, LOCAL, converges=True).train(rank, ROUND)
    told = [e.report.facts["param_divergence_ratio"] for e in run.events]
    expected = [_definition(everyones(b), list(range(NUM_RANKS))) for b in run.before]
    hurt = Watched(rank, LOCAL, spoiled=1).train(rank, ROUND)
    hurt_told = hurt.events[0].report.facts["param_divergence_ratio"]
    quiet = Watched(rank, Fixed(alpha=0.0, sync_every=ROUND)).train(rank, ROUND)
    searching = Watched(rank, Auto(scout_steps=8, pair_steps=16, max_search_ratio=1.0)).train(rank, 8)
    return {
        "told": {
            "as defined": told == pytest.approx(expected, rel=1e-9),
            "above zero": min(told) > 1e-6,
            "same on all ranks": everyones([torch.tensor(told)])[0][0].tolist()
            == torch.tensor(told).tolist(),
        },
        "average": {
            "bit for bit as without": loops.are_bit_equal(converged.before[0], run.after[0]),
            "equal on all ranks": are_equal_on_all_ranks(run.after[0]),
        },
        "left out": {
            "was left out": hurt.events[0].verdict.unhealthy == (1,),
            "of the others": hurt_told == pytest.approx(_definition(everyones(hurt.before[0]), [0, 2])),
        },
        "no average": {
            name: len(other.events) == 1 and "param_divergence_ratio" not in other.events[0].report.facts
            for name, other in (("keep", quiet), ("put back", searching))
        },
        "further facts": {"own": run.events[0].report.facts["samples"] == 8.0 + rank},
    }


@pytest.fixture(scope="module")
def looks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, bool]]]:
    return run_on_ranks(_look, NUM_RANKS, store_path=tmp_path_factory.mktemp("divergence"))


def test_a_boundary_tells_the_largest_distance_from_the_mean(looks: list[dict[str, dict[str, bool]]]) -> None:
    assert failed(looks, "told") == []


def test_measuring_changes_no_bit_of_the_average(looks: list[dict[str, dict[str, bool]]]) -> None:
    assert failed(looks, "average") == []


def test_a_replica_that_is_left_out_is_not_measured(looks: list[dict[str, dict[str, bool]]]) -> None:
    assert failed(looks, "left out") == []


def test_rounds_without_an_average_tell_no_distance(looks: list[dict[str, dict[str, bool]]]) -> None:
    assert failed(looks, "no average") == []


def test_further_facts_stand_in_the_report(looks: list[dict[str, dict[str, bool]]]) -> None:
    assert failed(looks, "further facts") == []
