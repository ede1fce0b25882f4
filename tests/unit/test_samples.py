"""Samples of a run: what ranks counted stands in reports, and a ledger's lines add up to it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hdet_ray import Fixed, HDETOneCycleLR
from hdet_ray.cli.summary import facts_of
from hdet_ray.core.decide import decide, start
from hdet_ray.core.planning import plan_for
from hdet_ray.core.replay import Ledger, header_line, item_line, read_ledger
from hdet_ray.exceptions import CheckpointError
from hdet_ray.optim.rows import HealthRow, sample_facts
from hdet_ray.optim.samples import SampleCount
from hdet_ray.view.history import History
from hdet_ray.view.samples import account
from tests.unit.runs import make_config, make_report


class Counter:
    """A sampler, as far as counting goes."""

    def __init__(self) -> None:
        self.samples_taken = 0


def row(samples: float) -> HealthRow:
    return HealthRow(**{**dict.fromkeys(HealthRow.__dataclass_fields__, 0.0), "samples": samples})


# ------------------------------------------------------------------ what is told


def test_a_replicas_samples_are_those_of_all_its_ranks() -> None:
    facts = sample_facts([row(3), row(4), row(5), row(6)], 2)
    assert facts == {"samples": 18, "samples/0": 7, "samples/1": 11}


def test_a_rank_that_does_not_count_leaves_no_sum_that_looks_whole() -> None:
    assert sample_facts([row(3), row(math.nan)], 1) == {}


def test_a_rank_tells_what_it_took_since_the_boundary_before() -> None:
    count, sampler = SampleCount(), Counter()
    sampler.samples_taken = 5  # before anything was tied to it
    count.count(sampler)
    told = []
    for taken in (8, 8, 15):
        sampler.samples_taken = taken
        told.append(count.take_new())
    assert told == [3, 0, 7]


def test_the_total_goes_on_from_a_checkpoint() -> None:
    count = SampleCount()
    count.restore(100.0, 0)
    assert count.told({"samples": 20.0})["samples_total"] == 120
    assert count.told({}) == {}
    assert count.total == 120


def make_scheduler() -> HDETOneCycleLR:
    import torch

    model = torch.nn.Linear(1, 1)
    controller = Fixed(alpha=0.0, sync_every=4)
    return HDETOneCycleLR(
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), 0.1, total_steps=40, controller=controller
    )


def run(scheduler: HDETOneCycleLR, sampler: Counter, steps: int) -> list[dict[str, float]]:
    """Facts of the rounds that end within so many steps of three samples."""
    facts: list[dict[str, float]] = []
    scheduler.on_boundary(lambda event: facts.append(dict(event.report.facts)))
    for _ in range(steps):
        sampler.samples_taken += 3
        scheduler.optimizer.step()
        scheduler.step(1.0)
    return facts


@pytest.mark.parametrize("first", [4, 5, 6, 7, 8])
@pytest.mark.filterwarnings("ignore")
def test_a_run_saved_at_any_step_of_a_round_counts_as_the_unbroken_one(first: int) -> None:
    whole, sampler = make_scheduler(), Counter()
    whole.count_samples(sampler)
    unbroken = run(whole, sampler, 12)
    before, sampler = make_scheduler(), Counter()
    before.count_samples(sampler)
    run(before, sampler, first)
    after, fresh = make_scheduler(), Counter()
    after.count_samples(fresh)
    after.load_state_dict(before.state_dict())
    resumed = run(after, fresh, 12 - first)
    names = ("samples", "samples/0", "samples_total")
    assert [[facts[name] for name in names] for facts in unbroken] == [
        [12, 12, 12],
        [12, 12, 24],
        [12, 12, 36],
    ]
    assert [[f[n] for n in names] for f in resumed] == [[f[n] for n in names] for f in unbroken[first // 4 :]]


@pytest.mark.parametrize("damage", [-1, "many", math.inf, math.nan, True])
def test_a_damaged_count_is_refused(damage: object) -> None:
    scheduler = make_scheduler()
    with pytest.raises(CheckpointError, match="samples_total"):
        scheduler.load_state_dict({**scheduler.state_dict(), "samples_total": damage})


# ------------------------------------------------------------------ what a ledger adds up to


def ledger_of(attempts: list[tuple[int, int]], *, is_counted: bool = True) -> Ledger:
    """A ledger whose attempts each went back some rounds, and then trained some, with one replica more."""
    state, _ = start(make_config(Fixed(alpha=0.0, sync_every=10), total_steps=10_000), 2)
    lines, states = [header_line(state)], [state]
    for attempt, (back, num_rounds) in enumerate(attempts, start=1):
        del states[max(1, len(states) - back) :]
        for _ in range(num_rounds):
            plan = plan_for(states[-1], 1 + attempt)
            report = make_report(plan)
            if is_counted:
                own = {f"samples/{r}": 100.0 * attempt + r for r in range(plan.num_replicas)}
                report = replace(report, facts={"samples": sum(own.values()), **own})
            following, upcoming = decide(states[-1], report)
            lines.append(item_line(attempt, report, upcoming))
            states.append(following)
    return read_ledger(lines)


ATTEMPTS = st.lists(st.tuples(st.integers(0, 6), st.integers(1, 6)), min_size=1, max_size=5)


@given(attempts=ATTEMPTS)
def test_every_line_is_of_the_newest_chain_or_abandoned_and_counted_once(
    attempts: list[tuple[int, int]],
) -> None:
    ledger = ledger_of(attempts)
    told = account(ledger.items, ledger.abandoned)
    each = [sum(100 * a + r for r in range(1 + a)) for a in range(len(attempts) + 1)]  # a round's, by attempt
    assert told.spent == sum(num_rounds * each[a] for a, (_, num_rounds) in enumerate(attempts, start=1))
    assert told.total == sum(each[item.attempt] for item in ledger.items)
    assert told.total + told.lost == told.spent
    assert sum(told.by_replica) == told.total
    assert sum(told.lost_by_attempt.values()) == told.lost
    assert [r.round for r in told.rounds] == list(range(len(told.rounds)))


def test_the_sums_of_a_run_that_went_back_two_rounds() -> None:
    ledger = ledger_of([(0, 3), (2, 4)])
    told = account(ledger.items, ledger.abandoned)
    assert [(r.attempt, r.round, r.samples) for r in told.rounds] == [
        (1, 0, 201),
        (2, 1, 603),
        (2, 2, 603),
        (2, 3, 603),
        (2, 4, 603),
    ]
    assert [(r.attempt, r.round) for r in told.abandoned] == [(1, 1), (1, 2)]
    assert told.rounds[1].by_replica == (200, 201, 202)
    assert told.by_replica == (900, 905, 808)
    assert (told.total, told.lost, told.spent) == (2613, 402, 3015)
    assert told.lost_by_attempt == {1: 402}


def test_a_ledger_without_counts_says_so_and_adds_nothing_up() -> None:
    ledger = ledger_of([(0, 3), (1, 2)], is_counted=False)
    told = account(ledger.items, ledger.abandoned)
    assert not told.is_counted
    assert told.rounds[0].samples is None
    assert told.spent == 0
    assert "samples" not in dict(facts_of(History.of(ledger)))


def test_the_report_shows_what_was_trained_on_and_what_of_it_twice() -> None:
    ledger = ledger_of([(0, 3), (2, 4)])
    whole = History.of(ledger)
    assert dict(facts_of(whole))["samples"] == "2,613, 402 more in rounds that were repeated"
    live = History(ledger.state)
    chain = [*ledger.items[:1], *ledger.abandoned, *ledger.items[1:]]
    for item in chain:  # as they come, the abandoned rounds first
        live.add(item)
    assert facts_of(live) == facts_of(whole)
