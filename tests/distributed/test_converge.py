"""One model of several replicas: at boundaries, at the end, and whenever the user asks for it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hdet_ray import Auto, ConfigError, Fixed, HDETOneCycleLR, Paper
from hdet_ray.config import Controller
from tests.distributed import loops
from tests.distributed.outcomes import are_equal_on_all_ranks, everyones, failed
from tests.distributed.ranks import run_on_ranks

NUM_RANKS = 3
LEFT_OUT = 2
ROUND = 5
STEPS = 12  # two rounds and a shorter one
LOCAL = Fixed(alpha=1 / 9, sync_every=ROUND, gradient_sync="local")
SEARCHING = Auto(scout_steps=8, pair_steps=16, max_search_ratio=1.0)


class Run:
    """A model with BatchNorm whose replicas differ, and its scheduler."""

    def __init__(self, rank: int, controller: Controller, *, steps: int = STEPS, **settings: Any) -> None:
        self.rank = rank
        self.model = loops.wrap(loops.make_net(batch_norm=True))
        self.optimizer = loops.make_optimizer("adamw", self.model)
        self.scheduler = HDETOneCycleLR(
            self.optimizer,
            max_lr=0.02,
            total_steps=steps,
            controller=controller,
            model=self.model,
            **settings,
        )
        self._done = 0

    def train(self, steps: int, before_step: Callable[[int], None] = lambda i: None) -> Run:
        """Go on for some steps; ``before_step`` is called between an update and the scheduler's step."""

        def step(loss: Tensor) -> None:
            before_step(self.scheduler.iterations)
            self.scheduler.step(loss)

        loops.train(self.model, self.optimizer, step, range(self._done, self._done + steps), self.rank)
        self._done += steps
        return self

    def state(self) -> list[Tensor]:
        """Copies of weights, buffers and optimizer state."""
        return loops.fingerprint(self.model, self.optimizer)

    def weights(self) -> list[Tensor]:
        """Copies of weights and buffers alone."""
        return [t.detach().clone() for t in self.model.state_dict().values()]

    def moments(self) -> list[Tensor]:
        """Copies of the optimizer's state."""
        return self.state()[len(self.weights()) :]


def _spoil(run: Run, value: float) -> None:
    with torch.no_grad():
        for tensor in (*run.model.parameters(), *run.model.buffers()):
            if tensor.is_floating_point():
                tensor.fill_(value)


def _is_mean(result: list[Tensor], of: list[list[Tensor]]) -> bool:
    """Floating tensors are the mean, others the first one's; bit for bit, so of two at most.

    The optimizer's step counts are the same everywhere, so that their mean is the first one's too.
    """
    for tensor, *sources in zip(result, *of, strict=True):
        is_floating = tensor.is_floating_point()
        expected = sum(sources) / len(sources) if is_floating else sources[0]
        if not torch.equal(tensor, expected):
            return False
    return True


def _averaged_in_mid_round(rank: int) -> dict[str, bool]:
    run = Run(rank, LOCAL).train(ROUND + 2)
    next(b for b in run.model.buffers() if not b.is_floating_point()).add_(rank)
    before = run.state()
    with run.scheduler.averaged():
        inside, moments = run.weights(), run.moments()
        others = everyones(before)
        means = [torch.stack(list(ts)).double().mean(0) for ts in zip(*others, strict=True)]
        is_mean = all(
            torch.allclose(t.double(), m, rtol=1e-12, atol=1e-15)
            for t, m in zip(inside, means, strict=False)
            if t.is_floating_point()
        )
        counters = [t for t in inside if not t.is_floating_point()]
        first = [t for t in others[0][: len(inside)] if not t.is_floating_point()]
    after = run.state()
    run.train(STEPS - ROUND - 2)
    return {
        "differed": not are_equal_on_all_ranks(before),
        "equal inside": are_equal_on_all_ranks(inside),
        "mean inside": is_mean,
        "first counter inside": loops.are_bit_equal(counters, first) and bool(counters),
        "same moments inside": loops.are_bit_equal(moments, before[len(inside) :]),
        "restored": loops.are_bit_equal(before, after),
        "undisturbed": loops.are_bit_equal(run.state(), Run(rank, LOCAL).train(STEPS).state()),
    }


def _averaged_when_the_body_raises(rank: int) -> bool:
    run = Run(rank, LOCAL).train(2)
    before = run.state()
    with pytest.raises(KeyError), run.scheduler.averaged():
        raise KeyError("the user's evaluation")
    return loops.are_bit_equal(before, run.state())


def _averaged_without_one(rank: int, value: float) -> dict[str, bool]:
    run = Run(rank, LOCAL).train(2)
    if rank == LEFT_OUT:
        _spoil(run, value)
    before = run.weights()
    with run.scheduler.averaged():
        inside = run.weights()
    return {
        "mean of the others": _is_mean(inside, everyones(before)[:LEFT_OUT]),
        "restored": loops.are_bit_equal(before, run.weights()),
    }


def _averaged_in_a_search(rank: int) -> dict[str, bool]:
    run = Run(rank, SEARCHING, steps=400)
    begun_with = [p.detach().clone() for p in run.model.parameters()]
    run.train(4)
    before = run.state()
    with run.scheduler.averaged():
        inside = [p.detach().clone() for p in run.model.parameters()]
        weights = run.weights()
    with pytest.raises(ConfigError, match=r"round 0 is a search round.*after the search, or use averaged"):
        run.scheduler.converge()
    return {
        "is search": run.scheduler.plan.is_search,
        "differed": not are_equal_on_all_ranks(before),
        "as begun": loops.are_bit_equal(inside, begun_with) and are_equal_on_all_ranks(weights),
        "restored": loops.are_bit_equal(before, run.state()),
    }


def _converged_in_mid_round(rank: int) -> dict[str, bool]:
    run = Run(rank, LOCAL).train(2)
    before = everyones(run.state())
    run.scheduler.converge()
    equal = are_equal_on_all_ranks(run.state())
    run.train(1)
    if rank == LEFT_OUT:
        _spoil(run, float("nan"))
    others = everyones(run.state())[:LEFT_OUT]
    run.scheduler.converge()
    return {
        "differed": not loops.are_bit_equal(before[0], before[1]),
        "equal": equal,
        "goes on": run.scheduler.last_epoch == 3 and not run.scheduler.is_boundary,
        "takes the others' mean": _is_mean(run.state(), others),
    }


def _without_anyone_finite(rank: int) -> str:
    run = Run(rank, LOCAL).train(1)
    _spoil(run, float("nan"))
    with pytest.raises(ConfigError) as caught:
        run.scheduler.converge()
    return str(caught.value)


def _look_at_all(rank: int) -> dict[str, Any]:
    return {
        "averaged": _averaged_in_mid_round(rank),
        "raising body": _averaged_when_the_body_raises(rank),
        "averaged without nan": _averaged_without_one(rank, float("nan")),
        "averaged without inf": _averaged_without_one(rank, float("inf")),
        "averaged in search": _averaged_in_a_search(rank),
        "converged": _converged_in_mid_round(rank),
        "nobody finite": _without_anyone_finite(rank),
    }


@pytest.fixture(scope="module")
def looks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_on_ranks(_look_at_all, NUM_RANKS, store_path=tmp_path_factory.mktemp("looks"))


def test_averaged_shows_the_mean_in_mid_round_and_puts_everything_back(looks: list[dict[str, Any]]) -> None:
    assert failed(looks, "averaged") == []


def test_averaged_puts_everything_back_when_the_body_raises(looks: list[dict[str, Any]]) -> None:
    assert all(look["raising body"] for look in looks)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_averaged_leaves_out_a_replica_that_is_not_finite(looks: list[dict[str, Any]], value: str) -> None:
    assert failed(looks, f"averaged without {value}") == []


def test_in_a_search_averaged_shows_what_the_round_began_with_and_converge_is_refused(
    looks: list[dict[str, Any]],
) -> None:
    assert failed(looks, "averaged in search") == []


def test_converge_makes_one_model_in_mid_round_without_those_that_are_not_finite(
    looks: list[dict[str, Any]],
) -> None:
    assert failed(looks, "converged") == []


def test_with_nobody_finite_there_is_nothing_to_converge_to(looks: list[dict[str, Any]]) -> None:
    for look in looks:
        assert re.search("no replica's weights are finite", look["nobody finite"])


SHARED = Fixed(alpha=1 / 9, sync_every=ROUND)
ENDINGS: dict[str, tuple[Controller, dict[str, Any]]] = {
    "shared": (SHARED, {}),
    "shared from warm noise": (SHARED, {"warm_noise": 0.01}),
    "local": (LOCAL, {}),
    "local without a spread": (Fixed(alpha=0.0, sync_every=ROUND, gradient_sync="local"), {}),
    "paper": (Paper(sync_every=ROUND, warmup_steps=3), {}),
    "local paper": (Paper(sync_every=ROUND, warmup_steps=3, gradient_sync="local"), {}),
    "auto with a spread": (Auto(alpha=1 / 9, sync_every=ROUND), {}),
    "own moments": (LOCAL, {"average_optimizer_state": False}),
}


def _end_all(rank: int) -> dict[str, tuple[bool, bool, bool]]:
    """For each: replicas differed before the last step, weights and buffers are equal after, moments are."""
    ends = {}
    for name, (controller, settings) in ENDINGS.items():
        run = Run(rank, controller, **settings)
        seen: list[bool] = []

        def look(i: int, run: Run = run, seen: list[bool] = seen) -> None:
            if i == STEPS - 1:
                next(b for b in run.model.buffers() if not b.is_floating_point()).add_(run.rank)
                seen.append(not are_equal_on_all_ranks([p.detach() for p in run.model.parameters()]))

        run.train(STEPS, look)
        ends[name] = (
            seen == [True],
            are_equal_on_all_ranks(run.weights()),
            are_equal_on_all_ranks(run.moments()),
        )
    return ends


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, tuple[bool, bool, bool]]]:
    return run_on_ranks(_end_all, NUM_RANKS, store_path=tmp_path_factory.mktemp("ends"))


@pytest.mark.parametrize("name", ENDINGS)
def test_after_the_last_step_all_replicas_are_one_model(
    ends: list[dict[str, tuple[bool, bool, bool]]], name: str
) -> None:
    averages_moments = name != "own moments"
    assert [end[name] for end in ends] == [(True, True, averages_moments)] * NUM_RANKS


def _leave_out(rank: int, value: float, averages_moments: bool) -> dict[str, Any]:
    """Spoil one replica at the end of the second round; everyone's state before and after that boundary."""
    run = Run(rank, LOCAL, average_optimizer_state=averages_moments)
    before: list[list[list[Tensor]]] = []

    def look(i: int) -> None:
        if i == 2 * ROUND - 1:
            if rank == LEFT_OUT:
                _spoil(run, value)
                for state in run.optimizer.state.values():
                    state["exp_avg"].fill_(value)
            before.append(everyones(run.state()))

    run.train(2 * ROUND, look)
    return {"before": before[0], "after": run.state(), "num_weights": len(run.weights())}


def _leave_out_all(rank: int) -> dict[str, Any]:
    nan, inf = float("nan"), float("inf")
    return {
        "nan": _leave_out(rank, nan, True),
        "inf": _leave_out(rank, inf, True),
        "own moments": _leave_out(rank, nan, False),
    }


@pytest.fixture(scope="module")
def left_out(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_on_ranks(_leave_out_all, NUM_RANKS, store_path=tmp_path_factory.mktemp("left-out"))


def test_a_left_out_replica_takes_the_mean_of_the_others_bit_for_bit(left_out: list[dict[str, Any]]) -> None:
    for outcome in left_out:
        told = outcome["nan"]
        assert _is_mean(told["after"], told["before"][:LEFT_OUT])


def test_what_a_left_out_replica_held_influences_nobody(left_out: list[dict[str, Any]]) -> None:
    for outcome in left_out:
        assert loops.are_bit_equal(outcome["nan"]["after"], outcome["inf"]["after"])


def test_where_replicas_keep_their_own_moments_a_left_out_one_takes_the_others_mean(
    left_out: list[dict[str, Any]],
) -> None:
    for rank, outcome in enumerate(left_out):
        told = outcome["own moments"]
        first = told["num_weights"]
        moments = [state[first:] for state in told["before"]]
        if rank == LEFT_OUT:
            assert _is_mean(told["after"][first:], moments[:LEFT_OUT])
        else:
            assert loops.are_bit_equal(told["after"][first:], moments[rank])
        assert _is_mean(told["after"][:first], [state[:first] for state in told["before"][:LEFT_OUT]])


SHARED = Fixed(alpha=1 / 9, sync_every=ROUND, gradient_sync="shared")


def _share_gradients(rank: int, harmed: int | None) -> dict[str, Any]:
    """Two rounds of shared gradients under a spread; one rank's moments differ before the first boundary."""
    run = Run(rank, SHARED)
    sent: list[float] = []
    run.scheduler.on_boundary(lambda event: sent.append(event.report.facts["sync_bytes"]))
    before: list[list[Tensor]] = []

    def look(i: int) -> None:
        if i == ROUND - 1:
            if rank == harmed:
                next(iter(run.optimizer.state.values()))["exp_avg"].mul_(2)
            before.extend(everyones(run.moments()))

    run.train(ROUND, look)
    moments = run.moments()
    run.train(ROUND)
    weights = [t for t in run.weights() if t.is_floating_point()]
    return {
        "sent": sent,
        "bytes of weights": sum(t.numel() * t.element_size() for t in run.weights()),
        "before": before,
        "moments": moments,
        "weights are equal": are_equal_on_all_ranks(weights),
    }


def test_moments_that_shared_gradients_kept_equal_are_not_sent(tmp_path: Path) -> None:
    for outcome in run_on_ranks(_share_gradients, NUM_RANKS, None, store_path=tmp_path):
        assert outcome["sent"] == [outcome["bytes of weights"]] * 2
        assert all(loops.are_bit_equal(outcome["moments"], other) for other in outcome["before"])
        assert outcome["weights are equal"]


def test_moments_that_differ_all_the_same_are_averaged(tmp_path: Path) -> None:
    outcomes = run_on_ranks(_share_gradients, NUM_RANKS, 1, store_path=tmp_path)
    for outcome in outcomes:
        assert outcome["sent"][0] > outcome["sent"][1] == outcome["bytes of weights"]
        assert loops.are_bit_equal(outcome["moments"], outcomes[0]["moments"])
    assert not loops.are_bit_equal(outcomes[0]["before"][0], outcomes[0]["before"][1])
