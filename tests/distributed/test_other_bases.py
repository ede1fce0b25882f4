"""Schedules of the user's own on real ranks: followed through a search and a spread, saved and resumed."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from hdet_ray import Auto, Fixed, HDETScheduler, Paper, value_at
from hdet_ray.config import Controller
from tests.distributed import loops
from tests.distributed.outcomes import are_equal_on_all_ranks, failed
from tests.distributed.ranks import run_on_ranks

STEPS = 120
SEARCHING = Auto(scout_steps=8, pair_steps=16, max_search_ratio=1.0, sync_every=10)
PAPER = Paper(sync_every=10, warmup_steps=20)


def _step_lr(optimizer: torch.optim.Optimizer) -> LRScheduler:
    return lr_scheduler.StepLR(optimizer, step_size=30, gamma=0.5)


def _exponential(optimizer: torch.optim.Optimizer) -> LRScheduler:
    return lr_scheduler.ExponentialLR(optimizer, gamma=0.98)


def _warm_up(optimizer: torch.optim.Optimizer) -> LRScheduler:
    return lr_scheduler.LambdaLR(optimizer, lambda t: min(1.0, (t + 1) / 20))


def _sequential(optimizer: torch.optim.Optimizer) -> LRScheduler:
    warm_up = lr_scheduler.LinearLR(optimizer, 0.1, total_iters=15)
    cosine = lr_scheduler.CosineAnnealingLR(optimizer, STEPS - 15)
    return lr_scheduler.SequentialLR(optimizer, [warm_up, cosine], milestones=[15])


BASES = {"StepLR": _step_lr, "ExponentialLR": _exponential, "LambdaLR": _warm_up, "SequentialLR": _sequential}


class BaseRun:
    """A run around a base of the user's own."""

    def __init__(self, rank: int, name: str, controller: Controller) -> None:
        self.rank = rank
        self.model = loops.wrap(loops.make_net())
        self.optimizer = loops.make_optimizer("adamw", self.model, lr=0.003)
        self.scheduler = HDETScheduler(
            BASES[name](self.optimizer),
            STEPS,
            controller=controller,
            model=self.model,
            probe=loops.probe_of(self.model),
        )
        self.alone: list[list[float]] = []
        """What the base would give by itself, step by step."""
        twin = loops.make_optimizer("adamw", loops.make_net(), lr=0.003)
        base = BASES[name](twin)
        for _ in range(STEPS + 1):
            self.alone.append(base.get_last_lr())
            twin.step()
            base.step()
        self.agrees = True

    def train(self, steps: range) -> BaseRun:
        loops.train(self.model, self.optimizer, self._step, steps, self.rank)
        return self

    def _step(self, loss: Tensor) -> None:
        self.scheduler.step(loss)
        plan, t = self.scheduler.plan, self.scheduler.last_epoch
        own = self.alone[0 if plan.is_search else t - plan.search_steps]
        expected = [value_at(plan, "lr", g, self.rank, t, external=own[g]) for g in range(2)]
        rates = [group["lr"] for group in self.optimizer.param_groups]
        self.agrees &= rates == expected == self.scheduler.get_last_lr()

    def save(self) -> bytes:
        file = io.BytesIO()
        torch.save([x.state_dict() for x in (self.model, self.optimizer, self.scheduler)], file)
        return file.getvalue()

    def load(self, data: bytes) -> None:
        states = torch.load(io.BytesIO(data), weights_only=True)
        for x, state in zip((self.model, self.optimizer, self.scheduler), states, strict=True):
            x.load_state_dict(state)

    def end(self) -> list[Tensor]:
        return loops.fingerprint(self.model, self.optimizer)


def _follow_bases(rank: int) -> dict[str, dict[str, bool]]:
    outcomes = {}
    for name in BASES:
        for controller in (SEARCHING, PAPER):
            run = BaseRun(rank, name, controller).train(range(STEPS))
            outcomes[f"{name} {type(controller).__name__}"] = {
                "values": run.agrees,
                "equal": are_equal_on_all_ranks(run.end()),
                "looked around": (run.scheduler.state.search_steps > 0) == (controller is SEARCHING),
                "moved": run.scheduler.state.log_scale != 0 or run.scheduler.state.rates is not None,
            }
    return outcomes


def _resume_bases(rank: int) -> dict[str, dict[str, bool]]:
    outcomes = {}
    for name, controller, breaks in (
        ("ExponentialLR", SEARCHING, (5, 90, 95)),
        ("SequentialLR", Fixed(alpha=1 / 9, sync_every=10), (14, 20)),
        ("StepLR", PAPER, (17, 43)),
    ):
        unbroken = BaseRun(rank, name, controller).train(range(STEPS)).end()
        found = outcomes[name] = {}
        for step in breaks:
            data = BaseRun(rank, name, controller).train(range(step)).save()
            run = BaseRun(rank, name, controller)
            run.load(data)
            found[f"broken at {step}"] = loops.are_bit_equal(run.train(range(step, STEPS)).end(), unbroken)
    return outcomes


def _save_in_mid_round(rank: int) -> bytes:
    return BaseRun(rank, "ExponentialLR", Fixed(alpha=1 / 9, sync_every=10)).train(range(27)).save()


def _resume_at_another_size(rank: int, data: bytes) -> tuple[int, bool]:
    run = BaseRun(rank, "ExponentialLR", Fixed(alpha=1 / 9, sync_every=10))
    run.load(data)
    first = run.scheduler.last_epoch
    return first, run.train(range(first, STEPS)).agrees


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, bool]]]:
    return run_on_ranks(_follow_bases, 4, store_path=tmp_path_factory.mktemp("bases"))


@pytest.mark.parametrize("controller", ["Auto", "Paper"])
@pytest.mark.parametrize("name", BASES)
def test_any_base_is_followed_through_search_and_spread(
    bases: list[dict[str, dict[str, bool]]], name: str, controller: str
) -> None:
    assert failed(bases, f"{name} {controller}") == []


def test_around_a_base_a_saved_run_ends_bit_equal(tmp_path_factory: pytest.TempPathFactory) -> None:
    outcomes = run_on_ranks(_resume_bases, 2, store_path=tmp_path_factory.mktemp("resumed"))
    assert [failed(outcomes, name) for name in outcomes[0]] == [[], [], []]


def test_around_a_base_a_round_that_starts_again_takes_the_base_back(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("resized")
    data = run_on_ranks(_save_in_mid_round, 2, store_path=folder)[0]
    assert run_on_ranks(_resume_at_another_size, 3, data, store_path=folder) == [(20, True)] * 3
