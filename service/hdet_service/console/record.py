"""What a page shows of a run's rounds: read from the ledger once, made small, and kept.

Of a long run every 2nd, 4th, … round is taken, of wide ones fewer still. What is kept of a round is a few
numbers a replica, or, where there are many replicas, five quantiles of them.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from hdet_ray.core.codec import from_json
from hdet_ray.core.health import judge
from hdet_ray.core.plan import RATE, Phase, Plan, centre_rate
from hdet_ray.core.planning import plan_for
from hdet_ray.core.report import ReplicaReport, RoundReport
from hdet_ray.core.state import ScheduleState, state_from_json
from hdet_ray.exceptions import HDETError
from hdet_ray.view.numbers import duration_text
from hdet_service.store.models import Event, Job, LedgerStart, Round

MANY_REPLICAS = 16
"""With more, lines become bands of quantiles."""
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
MAX_ROUNDS = 400
_MIN_ROUNDS = 60
_ROUNDS_TIMES_REPLICAS = 25_600
"""What is read at most: a line of the ledger grows with the replicas."""
_SEARCH_ROUNDS = 16
"""The first rounds are all taken: a search is over by then."""
_POINTS_OF_TRIAL = 12
_POINTS_OF_RUN = 160
"""Of the base rate; a round has its share of them, and at least its ends."""
_MAX_RUNS = 64
_MAX_MARKS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRecord:
    """A finished round."""

    round: int
    phase: Phase
    step: int
    end_step: int
    num_replicas: int
    base: tuple[tuple[float, float], ...]
    """(step, rate at the centre of the spread); the same rate for the first parameter group as everywhere."""
    spread: tuple[float, ...]
    """Multiplier of each replica, or quantiles of them, ascending."""
    losses: tuple[float | None, ...]
    """Mean training loss of each replica, or quantiles of the finite ones; None where not finite."""
    left_out: Mapping[int, str]
    """Unhealthy replicas, and why."""
    num_dead: int
    """Candidates of a search round that died."""
    loss: float | None
    """Mean over healthy replicas."""
    loss_spread: float | None
    divergence: float | None
    rolled_back: bool

    @property
    def is_many(self) -> bool:
        """Replicas are summed up in quantiles."""
        return self.num_replicas > MANY_REPLICAS

    @property
    def differs(self) -> bool:
        """Replicas have different rates."""
        return len(set(self.spread)) > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """The run began anew here: with another number of replicas, after an interruption, or both."""

    step: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """A run as a page shows it."""

    start: ScheduleState
    """Where its ledger starts."""
    state: ScheduleState
    plan: Plan
    """The running round's."""
    rounds: tuple[RoundRecord, ...]
    stride: int
    """Every so many rounds one is shown; 1: all."""
    newest: RoundReport | None
    """Report of the newest round, whole."""
    marks: tuple[Mark, ...] = ()
    """Of the newest resizes and recoveries, by step."""


@dataclass(slots=True)
class _Kept:
    records: dict[tuple[int, int], RoundRecord] = field(default_factory=dict)
    """By attempt and round."""


class RunRecords:
    """Reads runs; what it has made of a round it keeps, for the runs that were looked at last.

    Args:
        max_rounds: Of one run, at most about so many are shown.
    """

    def __init__(self, max_rounds: int = MAX_ROUNDS) -> None:
        self._max_rounds = max_rounds
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._lock = Lock()
        self.lines_read = 0
        """Of ledgers, since the start."""

    def read(self, session: Session, job: Job) -> RunRecord | None:
        """The run of a job; None where no worker has opened it yet, or a newer release has written it."""
        start = session.get(LedgerStart, job.id)
        if start is None or job.schedule is None or job.plan is None:
            return None
        try:
            first, state = state_from_json(start.header), state_from_json(job.schedule)
            plan: Plan = from_json(Plan, job.plan)
            return self._read(session, job, first, state, plan)
        except HDETError:
            return None

    def _read(
        self, session: Session, job: Job, first: ScheduleState, state: ScheduleState, plan: Plan
    ) -> RunRecord:
        kept = self._kept_of(job.id)
        chain = _chain(session, job.id)
        stride = self._stride(len(chain), plan.num_replicas)
        chosen = _chosen(sorted(chain), stride)
        missing = [r for r in chosen if (chain[r], r) not in kept.records]
        newest_round = max(chain, default=None)
        wanted = {*missing, *(r - 1 for r in missing), *(() if newest_round is None else (newest_round,))}
        lines = _lines(session, job.id, wanted & chain.keys())
        self.lines_read += len(lines)
        parsed = {r: json.loads(text) for r, text in lines.items()}
        for round in missing:
            finished = _plan_before(round, first, parsed)
            if finished is not None and round in parsed:
                report: RoundReport = from_json(RoundReport, parsed[round]["report"])
                kept.records[chain[round], round] = summarize(finished, report, state)
        live = {(chain[r], r) for r in chosen}
        for key in [key for key in kept.records if key not in live]:
            kept.records.pop(key, None)
        newest = parsed.get(newest_round) if newest_round is not None else None
        return RunRecord(
            start=first,
            state=state,
            plan=plan,
            rounds=tuple(kept.records[chain[r], r] for r in chosen if (chain[r], r) in kept.records),
            stride=stride,
            newest=None if newest is None else from_json(RoundReport, newest["report"]),
            marks=_marks(session, job.id),
        )

    def _stride(self, num_rounds: int, num_replicas: int) -> int:
        most = max(_MIN_ROUNDS, _ROUNDS_TIMES_REPLICAS // max(num_replicas, 1))
        stride = 1
        while num_rounds > min(most, self._max_rounds) * stride:
            stride *= 2
        return stride

    def _kept_of(self, job_id: str) -> _Kept:
        with self._lock:
            kept = self._kept.setdefault(job_id, _Kept())
            self._kept.move_to_end(job_id)
            while len(self._kept) > _MAX_RUNS:
                self._kept.popitem(last=False)
            return kept


def summarize(plan: Plan, report: RoundReport, state: ScheduleState) -> RoundRecord:
    """A finished round in a few numbers.

    Args:
        plan: What it followed.
        report: What it told.
        state: Any later state of the run: it knows the search's points and the thresholds.
    """
    verdict = judge(plan, report.replicas, state.config.thresholds)
    points = state.search.points if state.search is not None else ()
    healthy = [r for r, weight in zip(report.replicas, verdict.weights, strict=True) if weight > 0]
    finite = [r.loss for r in healthy if r.has_loss and math.isfinite(r.loss)]
    divergence = report.facts.get("param_divergence_ratio")
    return RoundRecord(
        round=plan.round,
        phase=plan.phase,
        step=plan.step,
        end_step=plan.step + report.steps,
        num_replicas=plan.num_replicas,
        base=tuple(_base_points(plan, report)),
        spread=_few(plan.values.get((RATE, 0), (1.0,))),
        losses=_losses(report.replicas),
        left_out={r: why for r, why in enumerate(verdict.reasons) if why},
        num_dead=sum(p.is_dead for p in points if p.round == plan.round),
        loss=statistics.fmean(finite) if finite else None,
        loss_spread=max(finite) - min(finite) if len(finite) > 1 else None,
        divergence=divergence if divergence is not None and math.isfinite(divergence) else None,
        rolled_back=verdict.rolls_back,
    )


def quantiles(values: Sequence[float]) -> tuple[float, ...]:
    """The five quantiles of sorted values."""
    return tuple(values[round(q * (len(values) - 1))] for q in QUANTILES)


def _few(values: Sequence[float]) -> tuple[float, ...]:
    return quantiles(sorted(values)) if len(values) > MANY_REPLICAS else tuple(values)


def _losses(replicas: Sequence[ReplicaReport]) -> tuple[float | None, ...]:
    told = [r.loss if r.has_loss and math.isfinite(r.loss) else None for r in replicas]
    if len(told) <= MANY_REPLICAS:
        return tuple(told)
    finite = sorted(loss for loss in told if loss is not None)
    return quantiles(finite) if finite else (None,) * len(QUANTILES)


def _base_points(plan: Plan, report: RoundReport) -> Iterable[tuple[float, float]]:
    end = plan.step + max(report.steps, 1)
    if plan.shape == "external":
        external = report.external_rates.get((RATE, 0))
        if external is not None:
            yield end, centre_rate(plan, 0, plan.step, external=external)
        return
    share = _POINTS_OF_RUN * report.steps // plan.total_steps
    count = min(_POINTS_OF_TRIAL if plan.shape == "trial" else max(share, 2), report.steps or 1)
    steps = {plan.step + round(i * (report.steps - 1) / max(count - 1, 1)) for i in range(count)}
    for step in sorted(steps):
        yield step, centre_rate(plan, 0, step)


def _chain(session: Session, job_id: str) -> dict[int, int]:
    """Attempt by round, of the rounds that stand and are kept whole."""
    rows = session.execute(
        select(Round.round, func.max(Round.attempt))
        .where(Round.job_id == job_id, Round.is_abandoned.is_(False), Round.is_thinned.is_(False))
        .group_by(Round.round)
    )
    return dict(rows.all())


def _marks(session: Session, job_id: str) -> tuple[Mark, ...]:
    """A restart leaves one event of its length and one of its new size: they are one mark."""
    rows = session.execute(
        select(Event.type, Event.data)
        .where(Event.job_id == job_id, Event.type.in_(("recovery", "resize")))
        .order_by(Event.id.desc())
        .limit(2 * _MAX_MARKS)
    ).all()
    texts: dict[int, list[str]] = {}
    for type, data in reversed(rows):
        said = f"{data['from']} → {data['to']}" if type == "resize" else f"+{duration_text(data['seconds'])}"
        texts.setdefault(int(data.get("step", 0)), []).append(said)
    return tuple(Mark(step=step, text=", ".join(texts[step])) for step in sorted(texts)[-_MAX_MARKS:])


def _chosen(rounds: Sequence[int], stride: int) -> list[int]:
    """Which rounds are shown: by powers of two, so that a longer run goes on with what was read before."""
    newest = rounds[-1:]
    return [r for r in rounds if r % stride == 0 or r < _SEARCH_ROUNDS or r in newest]


def _lines(session: Session, job_id: str, rounds: Iterable[int]) -> dict[int, str]:
    wanted = sorted(rounds)
    found: dict[int, str] = {}
    for first in range(0, len(wanted), 500):
        rows = session.execute(
            select(Round.round, Round.item)
            .where(
                Round.job_id == job_id,
                Round.is_abandoned.is_(False),
                Round.is_thinned.is_(False),
                Round.round.in_(wanted[first : first + 500]),
            )
            .order_by(Round.attempt)
        )
        found.update(dict(rows.all()))
    return found


def _plan_before(round: int, first: ScheduleState, parsed: Mapping[int, Any]) -> Plan | None:
    """The plan that a round followed: decided by the one before it, or the ledger's first."""
    if round - 1 in parsed:
        plan: Plan = from_json(Plan, parsed[round - 1]["plan"])
        return plan
    if round == first.round and round in parsed:
        return plan_for(first, len(parsed[round]["report"]["replicas"]))
    return None
