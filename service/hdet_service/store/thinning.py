"""Bounded history: the newest rounds of a job stay whole, older ones become summaries, and it is said so.

Replay must go on working: so the state that the ledger starts with moves along, to the oldest round
that is still whole. It is found by deciding the older rounds once more; where that doesn't lead to the
plans that were recorded, nothing is thinned, since the state would be a guess.

A slice is read, prepared (slow: outside of any write), and then written in one short write.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from hdet_ray.core.replay import read_ledger, replay
from hdet_ray.core.state import state_to_json
from hdet_ray.exceptions import LedgerError
from hdet_service.store.models import Event, Job, LedgerStart, Round

MAX_SLICE_ROUNDS = 64
MAX_SLICE_CHARS = 1 << 20
"""Bounds of what one write thins: other writes wait meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Excess:
    """A job with more whole rounds than are kept."""

    job_id: str
    start: int
    """Round that its ledger starts with."""
    goal: int
    """Round that it should start with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """The oldest whole rounds of a job, as they were read."""

    job_id: str
    start: int
    header: Mapping[str, Any]
    chain: tuple[Round, ...]
    """The newest chain's rounds from ``start`` on."""
    abandoned: tuple[Round, ...]
    """Whole rounds of older attempts that lie before the end of the chain's."""
    round_events: tuple[int, ...]
    """Ids of events that tell of these rounds and their checkpoints, oldest first: the summaries say more."""

    @property
    def end(self) -> int:
        """The round after them."""
        return self.start + len(self.chain)


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What is left of a round."""

    attempt: int
    round: int
    item: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A slice that can be thinned."""

    found: Slice
    header: Mapping[str, Any]
    """The ledger's first line from then on: the state after the slice."""
    summaries: tuple[Summary, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a slice can't be thinned."""

    job_id: str
    round: int
    message: str


def excesses(session: Session, keep: int) -> list[Excess]:
    """Jobs whose ledgers are so long that a pass is worth it: a tenth above ``keep``, in whole rounds."""
    worth = keep + max(1, keep // 10)
    query = (
        select(Job.id, LedgerStart.round, Job.round)
        .join(LedgerStart, LedgerStart.job_id == Job.id)
        .where(Job.round - LedgerStart.round >= worth)
        .order_by(Job.id)
    )
    return [
        Excess(job_id=job_id, start=start, goal=running - keep)
        for job_id, start, running in session.execute(query)
    ]


def read_slice(session: Session, job_id: str, goal: int) -> Slice | None:
    """The next rounds to thin, all before ``goal``; None where there are none."""
    start = session.get(LedgerStart, job_id)
    if start is None or start.round >= goal:
        return None
    chain: list[Round] = []
    num_chars = 0
    query = select(Round).where(Round.job_id == job_id, Round.is_thinned.is_(False))
    newest = query.where(Round.is_abandoned.is_(False), Round.round >= start.round, Round.round < goal)
    for row in session.scalars(newest.order_by(Round.round).limit(MAX_SLICE_ROUNDS)):
        num_chars += len(row.item)
        if chain and num_chars > MAX_SLICE_CHARS:
            break
        chain.append(row)
    end = start.round + len(chain)
    abandoned = query.where(Round.is_abandoned.is_(True), Round.round < end)
    return Slice(
        job_id=job_id,
        start=start.round,
        header=start.header,
        chain=tuple(chain),
        abandoned=tuple(session.scalars(abandoned.order_by(Round.round).limit(MAX_SLICE_ROUNDS))),
        round_events=tuple(_round_events(session, job_id, end)),
    )


def prepare(found: Slice) -> Prepared | Refusal:
    """Decide the slice's rounds once more, and make their summaries."""
    rows = (*found.chain, *found.abandoned)
    try:
        ledger = read_ledger([json.dumps(found.header), *(row.item for row in found.chain)])
        summaries = tuple(
            Summary(attempt=row.attempt, round=row.round, item=summary_of(row.item)) for row in rows
        )
    except LedgerError as error:
        return Refusal(job_id=found.job_id, round=found.start, message=str(error))
    if not ledger.items:
        return Refusal(job_id=found.job_id, round=found.start, message=f"round {found.start} is missing")
    outcome = replay(ledger)
    if outcome.departure is not None:
        gone = outcome.departure
        message = f"{gone.field} is recorded as {gone.recorded!r}, but follows as {gone.expected!r}"
        return Refusal(job_id=found.job_id, round=gone.round, message=message)
    return Prepared(found=found, header=state_to_json(outcome.state), summaries=summaries)


def thin(session: Session, prepared: Prepared) -> bool:
    """Put the summaries in place of the rounds, and let the ledger start after them.

    Returns:
        False where the run went back before the slice's end meanwhile: nothing was done.
    """
    found = prepared.found
    start = session.get(LedgerStart, found.job_id)
    if start is None or start.round != found.start or start.header != found.header:
        return False
    standing = select(Round.attempt, Round.round).where(
        Round.job_id == found.job_id,
        Round.is_abandoned.is_(False),
        Round.round >= found.start,
        Round.round < found.end,
    )
    chain = [(row.attempt, row.round) for row in found.chain]
    if [tuple(row) for row in session.execute(standing.order_by(Round.round))] != chain:
        return False
    session.execute(
        update(Round),
        [
            {
                "job_id": found.job_id,
                "attempt": summary.attempt,
                "round": summary.round,
                "item": summary.item,
                "is_thinned": True,
            }
            for summary in prepared.summaries
        ],
    )
    session.execute(delete(Event).where(Event.id.in_(found.round_events)))
    start.round, start.header = found.end, dict(prepared.header)
    return True


def summary_of(item: str) -> str:
    """What stays of a line: no replicas, no values of a plan; what operators asked for stays whole.

    Raises:
        LedgerError: It is no line of a ledger.
    """
    try:
        line = json.loads(item)
        report, plan = line["report"], line["plan"]
        losses = [r["loss"] for r in report["replicas"] if _is_finite(r["loss"])]
        summary = {
            "attempt": line["attempt"],
            "round": line["round"],
            "thinned": True,
            "report": {
                **{name: report[name] for name in ("round", "calls", "steps", "plan_digest")},
                "num_replicas": len(report["replicas"]),
                "loss": math.fsum(losses) / len(losses) if losses else None,
                "commands": report.get("commands", []),
            },
            "plan": {name: plan[name] for name in ("round", "step", "phase", "num_steps", "base", "peak")},
            "report_digest": line["report_digest"],
        }
    except (ValueError, KeyError, TypeError) as error:
        raise LedgerError(f"a stored round can't be read ({error!r}); restore a backup") from error
    return json.dumps(summary, allow_nan=False)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _round_events(session: Session, job_id: str, end: int) -> list[int]:
    told = func.json_extract(Event.data, "$.round")
    is_told = Event.type.in_(("round", "checkpoint"))
    query = select(Event.id).where(Event.job_id == job_id, is_told, told < end)
    return list(session.scalars(query.order_by(Event.id).limit(4 * MAX_SLICE_ROUNDS)))
