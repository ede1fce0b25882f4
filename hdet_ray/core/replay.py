"""The ledger: one JSON line a round, and the proof that the plans follow from the reports.

Line 1 is the initial state with its version; each further line is one round of one attempt:
``{"attempt", "round", "report", "plan", "report_digest"}``, where ``plan`` is what `decide` answered.
A restart opens a new attempt at the round it resumed from; replay follows the newest chain.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hdet_ray.core.codec import (
    canonical_text,
    digest,
    digest_of_json,
    digest_of_text,
    from_json,
    to_json,
)
from hdet_ray.core.decide import decide
from hdet_ray.core.plan import Plan
from hdet_ray.core.report import RoundReport
from hdet_ray.core.state import ScheduleState, state_from_json, state_to_json
from hdet_ray.exceptions import CheckpointError, HDETError, LedgerError


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerItem:
    """One round as it stands in the ledger."""

    attempt: int
    round: int
    report: RoundReport
    plan: Mapping[str, Any]
    report_digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """A ledger that was read: the initial state, and the newest chain of rounds."""

    state: ScheduleState
    items: tuple[LedgerItem, ...]
    abandoned: tuple[LedgerItem, ...] = ()
    """Rounds that a newer attempt went back before, in the order of their lines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Departure:
    """Where a ledger departs from what its reports lead to."""

    round: int
    field: str
    recorded: Any
    expected: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """The outcome of a replay."""

    rounds: int
    state: ScheduleState
    departure: Departure | None = None


def header_line(state: ScheduleState) -> str:
    """Line 1 of a ledger."""
    return json.dumps(state_to_json(state), allow_nan=False)


def item_line(attempt: int, report: RoundReport, plan: Plan) -> str:
    """The line of one round and the plan that was decided from it."""
    report_json = to_json(report)
    item = {
        "attempt": attempt,
        "round": report.round,
        "report": report_json,
        "plan": to_json(plan),
        "report_digest": digest_of_json(report_json),
    }
    return json.dumps(item, allow_nan=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedRound:
    """A round's line, and what its parts are called elsewhere."""

    line: str
    """`item_line`, with the digest of the state that the round led to: it tells two ledgers of one run apart
    where their plans alone would not."""
    plan: str
    """The next round's plan as it stands in the line."""
    plan_digest: str
    state_digest: str


def encode_round(
    attempt: int,
    report: RoundReport,
    plan: Plan,
    state: ScheduleState,
    *,
    report_text: str | None = None,
) -> EncodedRound:
    """Write one round down, with each part encoded once: in the line it stands as its digest reads it.

    Args:
        attempt: Which start of the run the round belongs to.
        report: The round's report.
        plan: The next round's plan.
        state: The state that `decide` gave with it.
        report_text: The report's canonical text, where it is at hand.
    """
    if report_text is None:
        report_text = canonical_text(to_json(report))
    plan_text = canonical_text(to_json(plan))
    state_digest = digest(state)
    return EncodedRound(
        line=f'{{"attempt": {attempt}, "round": {report.round}, "report": {report_text}, '
        f'"plan": {plan_text}, "report_digest": "{digest_of_text(report_text)}", '
        f'"state_digest": "{state_digest}"}}',
        plan=plan_text,
        plan_digest=digest_of_text(plan_text),
        state_digest=state_digest,
    )


def read_ledger(lines: Iterable[str]) -> Ledger:
    """Parse a ledger and keep its newest chain.

    Raises:
        LedgerError: no header, a broken line, or a gap; names the line and the field.
    """
    numbered = [(n, text) for n, text in enumerate(lines, start=1) if text.strip()]
    if not numbered:
        raise LedgerError("the ledger is empty: its first line must hold the initial state")
    try:
        state = state_from_json(_parse(*numbered[0]))
    except CheckpointError as error:
        raise LedgerError(f"line 1: {error}") from error
    items: list[LedgerItem] = []
    abandoned: list[LedgerItem] = []
    for number, text in numbered[1:]:
        item = _item(number, _parse(number, text))
        problem = _out_of_order(item, items, first=state.round)
        if problem:
            raise LedgerError(f"line {number}: {problem}")
        # A newer attempt may have gone back to here.
        abandoned += items[item.round - state.round :]
        del items[item.round - state.round :]
        items.append(item)
    return Ledger(state=state, items=tuple(items), abandoned=tuple(abandoned))


def replay(ledger: Ledger) -> Replay:
    """Decide every round anew and compare with what was recorded, field by field."""
    state = ledger.state
    for done, item in enumerate(ledger.items):
        if digest(item.report) != item.report_digest:
            return Replay(rounds=done, state=state, departure=_tampered_report(item))
        try:
            state, plan = decide(state, item.report)
        except HDETError as error:
            departure = Departure(
                round=item.round, field="report", recorded=item.report.plan_digest, expected=str(error)
            )
            return Replay(rounds=done, state=state, departure=departure)
        difference = first_difference(item.plan, to_json(plan), "plan")
        if difference is not None:
            field, recorded, expected = difference
            departure = Departure(round=item.round, field=field, recorded=recorded, expected=expected)
            return Replay(rounds=done, state=state, departure=departure)
    return Replay(rounds=len(ledger.items), state=state)


def first_difference(recorded: Any, expected: Any, where: str) -> tuple[str, Any, Any] | None:
    """The path of the first place where two JSON values differ, and both values there."""
    if isinstance(recorded, dict) and isinstance(expected, dict):
        for name in [*expected, *(n for n in recorded if n not in expected)]:
            if name not in recorded or name not in expected:
                return f"{where}.{name}", recorded.get(name), expected.get(name)
            found = first_difference(recorded[name], expected[name], f"{where}.{name}")
            if found:
                return found
        return None
    if isinstance(recorded, list) and isinstance(expected, list) and len(recorded) == len(expected):
        for i, (a, b) in enumerate(zip(recorded, expected, strict=True)):
            found = first_difference(a, b, f"{where}[{i}]")
            if found:
                return found
        return None
    same = recorded == expected and type(recorded) is type(expected)
    return None if same else (where, recorded, expected)


def _out_of_order(item: LedgerItem, before: Sequence[LedgerItem], *, first: int) -> str:
    """Why a line can't follow the chain before it; empty where it can."""
    due = first + len(before)
    if item.round < first:
        return f"round {item.round} lies before the initial state's {first}"
    if item.round > due:
        return f"round {item.round} stands where round {due} is due: a line is missing"
    if not before:
        return ""
    newest = before[-1].attempt
    if item.attempt < newest:
        return f"attempt {item.attempt} writes after attempt {newest} has begun; only the newest may"
    if item.round < due and item.attempt == newest:
        return (
            f"round {item.round} stands again in attempt {item.attempt}; only a newer attempt may repeat it"
        )
    return ""


def _tampered_report(item: LedgerItem) -> Departure:
    return Departure(
        round=item.round, field="report", recorded=digest(item.report), expected=item.report_digest
    )


def _parse(number: int, text: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise LedgerError(f"line {number} is no JSON ({error}): the file was cut or edited") from error
    if not isinstance(data, dict):
        raise LedgerError(f"line {number} is no JSON object")
    return data


def _item(number: int, data: dict[str, Any]) -> LedgerItem:
    known = {
        name: data[name] for name in ("attempt", "round", "report", "plan", "report_digest") if name in data
    }
    try:
        item: LedgerItem = from_json(LedgerItem, known)
    except LedgerError as error:
        raise LedgerError(f"line {number}: {error}") from error
    return item
