"""Bad input while training: what one rank's probe, loss, ledger or checkpoint breaks, every rank hears of.

Every case is tried in turn on the same two ranks, as for bad arguments; then what looks bad and is none.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from hdet_ray import (
    CheckpointError,
    CollectiveError,
    ConfigError,
    Fixed,
    HDETOneCycleLR,
    LocalControl,
    ProbeError,
    ScheduleExhaustedError,
)
from hdet_ray.core.plan import Plan
from hdet_ray.core.report import RoundReport
from hdet_ray.core.state import ScheduleState
from tests.distributed import loops
from tests.distributed.ranks import run_on_ranks
from tests.distributed.refusals import ODD_ONE, SEARCHING, SHARED, Case, hooked, make, told


def _train(rank: int, steps: int = 400, **settings: Any) -> HDETOneCycleLR:
    """Train some steps; ``probe`` is a function of the model."""
    model = loops.wrap(loops.make_net())
    optimizer = loops.make_optimizer("adamw", model)
    probe = settings.pop("probe", loops.probe_of)
    given = {"max_lr": 0.01, "total_steps": 400, "controller": SEARCHING, "model": model, **settings}
    scheduler = HDETOneCycleLR(optimizer, probe=probe and probe(model), **given)
    loops.train(model, optimizer, scheduler.step, range(steps), rank)
    return scheduler


def _spoiled_probe(
    spoil: Callable[[nn.Module], Any], rank: int
) -> Callable[[nn.Module], Callable[[int], Any]]:
    """A probe that does something else on one rank from its second stage on, or at once."""

    def of(model: nn.Module) -> Callable[[int], Any]:
        good = loops.probe_of(model)
        return lambda k: spoil(model) if rank == ODD_ONE else good(k)

    return of


def _raise(_model: nn.Module) -> float:
    raise KeyError("no such batch")


def _write_to_weights(model: nn.Module) -> float:
    next(model.parameters()).data.mul_(1.001)
    return 0.0


def _late_probe(rank: int) -> Callable[[nn.Module], Callable[[int], Any]]:
    calls = 0

    def of(model: nn.Module) -> Callable[[int], Any]:
        good = loops.probe_of(model)

        def probe(k: int) -> Any:
            nonlocal calls
            calls += 1
            return "a loss" if rank == ODD_ONE and calls > 6 else good(k)

        return probe

    return of


class _BrokenControl(LocalControl):
    def exchange(self, state: ScheduleState, report: RoundReport) -> tuple[ScheduleState, Plan]:
        raise RuntimeError("the controller is away")


def _unwritable_ledger(rank: int) -> None:
    _train(rank, control=LocalControl(ledger="/dev/null/ledger.jsonl"))


def _load(rank: int, odd: Callable[[dict[str, Any]], Any], usual: Callable[[dict[str, Any]], Any]) -> None:
    scheduler = make()
    state = scheduler.state_dict()
    scheduler.load_state_dict((odd if rank == ODD_ONE else usual)(state))


def _without(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda state: {key: value for key, value in state.items() if key != name}


def _same(state: dict[str, Any]) -> dict[str, Any]:
    return state


def _ahead(state: dict[str, Any]) -> dict[str, Any]:
    schedule = state["schedule"]
    return {**state, "schedule": {**schedule, "state": {**schedule["state"], "round": 3, "step": 30}}}


def _step_twice(rank: int) -> None:
    """Accelerate's wrapper: one call of the loop steps the scheduler once for each process."""
    model = loops.wrap(loops.make_net())
    optimizer = loops.make_optimizer("adamw", model)
    scheduler = HDETOneCycleLR(optimizer, max_lr=0.01, total_steps=400, controller=SHARED, model=model)
    loops.train(
        model,
        optimizer,
        lambda loss: [scheduler.step(loss) for _ in range(dist.get_world_size())],
        range(200),
        rank,
    )


def _step_without_loss(rank: int) -> None:
    scheduler = make(controller="paper")
    scheduler.step()


def _step_past_the_end(rank: int) -> None:
    scheduler = _train(rank, 20, controller=Fixed(alpha=0.0), total_steps=20, probe=None)
    saved = (scheduler.last_epoch, scheduler.state_dict())
    try:
        scheduler.step(torch.tensor(0.5))
    finally:
        assert saved == (scheduler.last_epoch, scheduler.state_dict())


LOOPS: dict[str, Case] = {
    "a probe that returns no number on one rank": (
        lambda r: _train(r, 1, probe=_spoiled_probe(lambda model: torch.ones(3), r)),
        ProbeError,
        r"probe\(0\) returned a Tensor of shape \[3\]; return one number, the mean loss",
    ),
    "a probe that raises on one rank": (
        lambda r: _train(r, 1, probe=_spoiled_probe(_raise, r)),
        ProbeError,
        "raised KeyError: 'no such batch'",
    ),
    "a probe that changes the weights on one rank": (
        lambda r: _train(r, 1, probe=_spoiled_probe(_write_to_weights, r)),
        ProbeError,
        r"the probe changed module\.0\.weight, but a probe only looks: .* work on a copy",
    ),
    "a probe that breaks in mid-run on one rank": (
        lambda r: _train(r, probe=_late_probe(r)),
        ProbeError,
        "returned a str; return one number",
    ),
    "a ledger that rank 0 can't write": (
        _unwritable_ledger,
        CollectiveError,
        "rank 0 could not open the run",
    ),
    "a control that raises on rank 0": (
        lambda r: _train(r, control=_BrokenControl()),
        CollectiveError,
        "rank 0 could not exchange the report of round 0: .*controller is away",
    ),
    "a wrapper that steps once per process": (
        _step_twice,
        ConfigError,
        r"called 33 times without an optimizer step.*Call it once per optimizer step; .*Accelerate",
    ),
    "a loss that is missing": (
        _step_without_loss,
        ConfigError,
        r"'paper' compares .*scheduler\.step\(loss\)",
    ),
    "a loss of several numbers": (
        lambda r: make().step(torch.ones(8)),
        ConfigError,
        r"shape \[8\]; pass the batch's mean loss, one number",
    ),
    "a loss that is none": (
        lambda r: make().step("0.5"),
        ConfigError,
        "got str; pass the batch's mean loss",
    ),
    "a step past the end": (
        _step_past_the_end,
        ScheduleExhaustedError,
        "step 21 lies past total_steps=20; stop the loop there",
    ),
    "a newer state on one rank": (
        lambda r: _load(r, lambda s: {**s, "version": 99}, _same),
        CheckpointError,
        "version 99.*upgrade hdet-ray",
    ),
    "a truncated state on one rank": (
        lambda r: _load(r, _without("schedule"), _same),
        CheckpointError,
        r"lacks \['schedule'\]: it was cut",
    ),
    "a state that is nothing on one rank": (
        lambda r: _load(r, lambda s: None, _same),
        CheckpointError,
        "is a NoneType and no mapping",
    ),
    "a state of another step on one rank": (
        lambda r: _load(r, _ahead, _same),
        CheckpointError,
        "load the same checkpoint on every rank",
    ),
    "a state of another controller": (
        lambda r: _load(r, *[lambda _: make(controller=SEARCHING).state_dict()] * 2),
        CheckpointError,
        "is of controller='auto', this scheduler has 'fixed'; pass the same",
    ),
    "a state that needs a probe": (
        lambda r: _load(r, *[lambda _: make(probe=lambda k: 0.0).state_dict()] * 2),
        CheckpointError,
        "this scheduler has none; pass probe=",
    ),
}


def _fail_all(rank: int) -> dict[str, tuple[str, str]]:
    return {name: told(case, rank) for name, (case, _, _) in LOOPS.items()}


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, tuple[str, str]]]:
    return run_on_ranks(_fail_all, 2, store_path=tmp_path_factory.mktemp("failures"))


@pytest.mark.parametrize("name", LOOPS)
def test_every_rank_hears_what_went_wrong_in_the_loop(
    failures: list[dict[str, tuple[str, str]]], name: str
) -> None:
    _, kind, words = LOOPS[name]
    for heard in failures:
        assert heard[name][0] == kind.__name__
        assert re.search(words, heard[name][1])


def _warned(train: Callable[[], Any]) -> tuple[Any, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = train()
    return result, [str(w.message) for w in caught]


def _train_plainly(rank: int) -> list[torch.Tensor]:
    model = loops.wrap(loops.make_net())
    optimizer = loops.make_optimizer("adamw", model)
    schedule = OneCycleLR(optimizer, max_lr=0.01, total_steps=120)
    loops.train(model, optimizer, lambda _loss: schedule.step(), range(120), rank)
    return loops.fingerprint(model, optimizer)


def _train_too_short(rank: int) -> tuple[list[torch.Tensor], int]:
    model = loops.wrap(loops.make_net())
    optimizer = loops.make_optimizer("adamw", model)
    scheduler = HDETOneCycleLR(
        optimizer, max_lr=0.01, total_steps=120, model=model, probe=loops.probe_of(model)
    )
    loops.train(model, optimizer, scheduler.step, range(120), rank)
    return loops.fingerprint(model, optimizer), scheduler.state.search_steps


def _train_under_own_hook(rank: int) -> bool:
    scheduler = hooked(controller=SHARED)
    model = scheduler.model
    assert model is not None
    loops.train(model, scheduler.optimizer, scheduler.step, range(20), rank)
    own = torch.cat([p.detach().flatten() for p in model.parameters()])
    everyone = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, own)
    return scheduler.is_boundary and torch.equal(everyone[0], everyone[1])


def _join_group_of_first_rank(rank: int) -> tuple[str, str] | int:
    group = dist.new_group([0])
    settings: dict[str, Any] = {"is_wrapped": False, "process_group": group, "controller": Fixed(alpha=0.0)}
    if rank == 0:
        return make(**settings).plan.num_replicas
    return told(lambda _: make(**settings), rank)


def _work_all(rank: int) -> dict[str, Any]:
    (short, search_steps), notes = _warned(lambda: _train_too_short(rank))
    return {
        "plain": _train_plainly(rank),
        "short": short,
        "search_steps": search_steps,
        "notes": [note for note in notes if "total_steps" in note],
        "under own hook": _train_under_own_hook(rank),
        "group of the first rank": _join_group_of_first_rank(rank),
    }


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_on_ranks(_work_all, 2, store_path=tmp_path_factory.mktemp("works"))


def test_a_run_too_short_for_a_search_is_plain_one_cycle_to_the_last_bit(
    outcomes: list[dict[str, Any]],
) -> None:
    for outcome in outcomes:
        assert outcome["search_steps"] == 0
        assert loops.are_bit_equal(outcome["short"], outcome["plain"])


def test_a_run_too_short_for_a_search_says_so_once(outcomes: list[dict[str, Any]]) -> None:
    (note,) = outcomes[0]["notes"]
    assert re.search(r"total_steps=120 is too short for a search \(it needs 352.*plain one-cycle", note)
    assert outcomes[1]["notes"] == []


def test_shared_gradients_work_under_a_hook_of_the_users_own(outcomes: list[dict[str, Any]]) -> None:
    assert all(outcome["under own hook"] for outcome in outcomes)


def test_a_rank_outside_the_group_is_refused_and_its_members_go_on(outcomes: list[dict[str, Any]]) -> None:
    assert outcomes[0]["group of the first rank"] == 1
    kind, words = outcomes[1]["group of the first rank"]
    assert kind == "ConfigError"
    assert re.search(
        r"rank 1 takes no part in this run's ranks \[0\]; build the scheduler on those only", words
    )
