"""A ledger's reports lead to its plans again, and what was changed in it is found by round and field."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from hdet_ray.config import Auto, Controller, Fixed, Paper
from hdet_ray.core.decide import decide
from hdet_ray.core.overrides import Override
from hdet_ray.core.plan import Plan
from hdet_ray.core.planning import plan_for
from hdet_ray.core.replay import header_line, item_line, read_ledger, replay
from hdet_ray.core.report import RoundReport
from hdet_ray.exceptions import LedgerError
from tests.unit.runs import Decided, make_config, make_replica, make_report, measured, rounds, weight_decay


def report_of(plan: Plan) -> RoundReport:
    """Varied: some replicas broken, an override, N that changes."""
    if plan.is_search:
        return measured(plan, lambda c: math.nan if c > 2 else 2 + (c - 0.4) ** 2, untrained_loss=99.0)
    replicas = [make_replica(2.0 + 0.1 * r, probe_loss=3.0 - 0.1 * r) for r in range(plan.num_replicas)]
    if plan.round == 6:
        replicas[1] = make_replica(math.nan, is_finite=True, probe_loss=None)
    override = Override(id="o", hparam="lr", op="scale", value=0.8, expires_after_rounds=2)
    return make_report(
        plan,
        replicas,
        commands=(override,) if plan.round == 5 else (),
        next_num_replicas=3 if plan.round == 7 else None,
    )


def run(controller: Controller | None = None) -> list[Decided]:
    config = make_config(
        controller or Auto(alpha=0.1), max_lr=(1e-3, 4e-3), explored=[weight_decay()], total_steps=1200
    )
    return list(rounds(config, 4, report_of))


def lines_of(found: list[Decided], attempt: int = 1) -> list[str]:
    """A ledger's lines: the first with the state, then one a round."""
    items = [item_line(attempt, d.report, d.next_plan) for d in found]
    return [header_line(found[0].state), *items]


def changed(line: str, change: Callable[[dict[str, Any]], None]) -> str:
    data = json.loads(line)
    change(data)
    return json.dumps(data)


@pytest.mark.parametrize(
    "controller", [Auto(alpha=0.1), Paper(warmup_steps=200), Fixed(gradient_sync="local")]
)
def test_replay_reproduces_every_plan_and_the_last_state(controller: Controller) -> None:
    found = run(controller)
    outcome = replay(read_ledger(lines_of(found)))
    assert outcome.departure is None
    assert outcome.rounds == len(found)
    assert outcome.state == found[-1].next_state


def test_a_tampered_plan_is_named_by_round_and_field() -> None:
    lines = lines_of(run())
    lines[5] = changed(lines[5], lambda d: d["plan"]["peak"]["lr"].update({"1": 0.123}))
    departure = replay(read_ledger(lines)).departure
    assert departure is not None
    assert (departure.round, departure.field, departure.recorded) == (4, "plan.peak.lr.1", 0.123)
    assert departure.expected != 0.123


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda p: p.pop("teams"), "plan.teams"),
        (lambda p: p.update(extra=1), "plan.extra"),
        (lambda p: p["values"]["lr"]["0"].__setitem__(2, 1.5), "plan.values.lr.0[2]"),
        (lambda p: p.update(num_steps=float(p["num_steps"])), "plan.num_steps"),
    ],
)
def test_every_kind_of_change_in_a_plan_is_found(
    change: Callable[[dict[str, Any]], None], field: str
) -> None:
    lines = lines_of(run())
    lines[3] = changed(lines[3], lambda d: change(d["plan"]))
    departure = replay(read_ledger(lines)).departure
    assert departure is not None
    assert (departure.round, departure.field) == (2, field)


def test_a_tampered_report_is_named_by_its_round_even_where_it_changes_no_plan() -> None:
    lines = lines_of(run())
    lines[4] = changed(lines[4], lambda d: d["report"]["replicas"][0].update(noise=0.06))
    departure = replay(read_ledger(lines)).departure
    assert departure is not None
    assert (departure.round, departure.field) == (3, "report")


def test_a_report_of_another_plan_is_named_by_its_round() -> None:
    found = run()
    other = [item_line(1, make_report(d.plan, plan_digest="0" * 32), d.next_plan) for d in found]
    lines = lines_of(found)
    lines[2] = other[1]
    departure = replay(read_ledger(lines)).departure
    assert departure is not None
    assert departure.round == 1
    assert "another run or was changed" in departure.expected


def test_a_tampered_initial_state_departs_at_the_first_round_that_it_touches() -> None:
    lines = lines_of(run())
    lines[0] = changed(lines[0], lambda d: d["state"]["config"].update(seed=1))
    departure = replay(read_ledger(lines)).departure
    assert departure is not None
    assert departure.round < 6


def test_a_missing_line_is_named() -> None:
    lines = lines_of(run())
    del lines[3]
    with pytest.raises(LedgerError, match="line 4: round 3 stands where round 2 is due: a line is missing"):
        read_ledger(lines)


def test_a_doubled_round_is_named() -> None:
    lines = lines_of(run())
    lines.insert(3, lines[3])
    with pytest.raises(LedgerError, match="line 5: round 2 stands again in attempt 1"):
        read_ledger(lines)


def test_a_broken_line_is_named() -> None:
    lines = lines_of(run())
    lines[3] = lines[3][:50]
    with pytest.raises(LedgerError, match="line 4 is no JSON"):
        read_ledger(lines)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("report_digest"), "line 3: report_digest is missing"),
        (lambda d: d["report"].update(round="one"), r"line 3: report\.round: 'one' is not int"),
        (lambda d: d["report"].pop("replicas"), r"line 3: report\.replicas is missing"),
    ],
)
def test_a_damaged_field_is_named_by_line(change: Callable[[dict[str, Any]], None], message: str) -> None:
    lines = lines_of(run())
    lines[2] = changed(lines[2], change)
    with pytest.raises(LedgerError, match=message):
        read_ledger(lines)


@pytest.mark.parametrize("lines", [[], ["", "  "]])
def test_an_empty_ledger_is_refused(lines: list[str]) -> None:
    with pytest.raises(LedgerError, match="empty"):
        read_ledger(lines)


@pytest.mark.parametrize("first", ["[]", "{}", '{"version": 99, "state": {}}'])
def test_a_ledger_without_its_first_line_is_refused_by_line(first: str) -> None:
    with pytest.raises(LedgerError, match="line 1"):
        read_ledger([first, *lines_of(run())[1:]])


def test_a_round_before_the_initial_state_is_refused() -> None:
    found = run()
    lines = [header_line(found[2].state), *lines_of(found)[1:]]
    with pytest.raises(LedgerError, match="line 2: round 0 lies before the initial state's 2"):
        read_ledger(lines)


def test_a_ledger_may_begin_at_a_later_round() -> None:
    found = run()
    outcome = replay(read_ledger([header_line(found[2].state), *lines_of(found)[3:]]))
    assert outcome.departure is None
    assert outcome.rounds == len(found) - 2


def test_replay_follows_the_newest_attempt_from_where_it_resumed_at_its_own_size() -> None:
    first = run()
    state, plan = first[3].state, plan_for(first[3].state, 8)
    resumed = []
    for _ in range(3):
        report = measured(plan, lambda c: 2 + (c + 0.5) ** 2)
        next_state, next_plan = decide(state, report)
        resumed.append(item_line(2, report, next_plan))
        state, plan = next_state, next_plan
    ledger = read_ledger([*lines_of(first), *resumed])
    assert [(item.attempt, item.round) for item in ledger.items] == [
        (1, 0), (1, 1), (1, 2), (2, 3), (2, 4), (2, 5)
    ]  # fmt: skip
    outcome = replay(ledger)
    assert outcome.departure is None
    assert outcome.state == state


def test_an_older_attempt_that_writes_on_is_refused() -> None:
    lines = lines_of(run())
    newer = changed(lines[3], lambda d: d.update(attempt=2))
    with pytest.raises(LedgerError, match="line 5: attempt 1 writes after attempt 2 has begun"):
        read_ledger([*lines[:3], newer, lines[4]])


def test_fields_of_others_beside_a_round_are_no_harm() -> None:
    lines = [
        lines_of(run())[0],
        *(changed(line, lambda d: d.update(received_at="noon")) for line in lines_of(run())[1:]),
    ]
    assert replay(read_ledger(lines)).departure is None
