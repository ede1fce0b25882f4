"""Counters of a run: rows of the database, raised in the transaction of what they count.

A counter is read from the database at each scrape and never kept elsewhere, so a restart of the controller
loses none, a repeated exchange (which stores nothing) counts nothing, and no retry takes one back.

    with the exchange's own session, before the job's row is changed:
        count_round(session, job, finished=plan, report=report, verdict=verdict, after=state, at_s=now)
    with an event (`events.record` does it):
        add_counts(session, job_id, counts_of_event(type, data))
    anywhere else:
        add_counts(session, job.id, one(SYNC_FAILURES, SyncFailure.LATE))
"""

from __future__ import annotations

import bisect
import itertools
import json
import math
import re
from collections import Counter as Tally
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from sqlalchemy import Table, exists, select
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.orm import Session

from hdet_ray.core.health import Verdict
from hdet_ray.core.plan import Plan
from hdet_ray.core.report import RoundReport
from hdet_ray.core.state import ScheduleState
from hdet_service.metrics.catalogue import (
    OVERRIDES,
    QUARANTINES,
    RECOVERY_DURATION,
    RESIZES,
    ROLLBACKS,
    SAMPLES,
    SEARCH_DEAD,
    SEARCH_STEPS,
    SYNC_BYTES,
    SYNC_DURATION,
    Direction,
    Metric,
)
from hdet_service.states import State
from hdet_service.store.models import Counter, Round, Transition

Counts = Mapping[str, float]
"""By how much each counter goes up; keys are what `Counter.name` holds."""

_COUNTERS: Table = Counter.__table__  # type: ignore[assignment]
_NEW = insert(_COUNTERS)
# Run at every exchange, and building it costs more than running it.
_RAISE = _NEW.on_conflict_do_update(
    index_elements=[_COUNTERS.c.job_id, _COUNTERS.c.name],
    set_={"value": _COUNTERS.c.value + _NEW.excluded.value},
)

_LABEL = re.compile(r'^(?P<name>[a-z_]+)(?:\{(?P<label>[a-z]+)="(?P<value>[^"]*)"\})?$')


class Key(NamedTuple):
    """A counter's name, taken apart."""

    name: str
    value: str
    """Of its one further label; empty without."""


class Restart(NamedTuple):
    """A run that trains again."""

    without_report_s: float | None
    """From the last report before it to its first; None where the run was paused in between."""
    replicas_before: int | None
    replicas: int


def one(metric: Metric, value: str = "") -> dict[str, float]:
    """One more of this metric, with this value of its last label."""
    return {key_of(metric, value): 1.0}


def key_of(metric: Metric, value: str = "") -> str:
    """A counter's name in the table.

    Raises:
        ValueError: the label has no such value.
    """
    if not metric.values:
        return metric.name
    if value not in metric.values:
        raise ValueError(f"{metric.name}: {value!r} is none of {', '.join(metric.values)}")
    return f'{metric.name}{{{metric.labels[-1]}="{value}"}}'


@lru_cache(maxsize=1024)
def parse_key(key: str) -> Key:
    """The name and the label's value of a row."""
    match = _LABEL.match(key)
    return Key(match["name"], match["value"] or "") if match else Key(key, "")


def observed(metric: Metric, seconds: float) -> dict[str, float]:
    """One more observation of a histogram: its own bucket (rows are not cumulative), and the sum."""
    place = bisect.bisect_left(metric.buckets, seconds)
    bound = "+Inf" if place == len(metric.buckets) else repr(metric.buckets[place])
    return {f'{metric.name}_bucket{{le="{bound}"}}': 1.0, f"{metric.name}_sum": seconds}


def cumulative(metric: Metric, rows: Mapping[Key, float]) -> tuple[list[tuple[str, float]], float]:
    """A histogram's buckets as they are exposed, and its sum."""
    bounds = [*map(repr, metric.buckets), "+Inf"]
    own = [rows.get(Key(f"{metric.name}_bucket", bound), 0.0) for bound in bounds]
    totals = list(zip(bounds, itertools.accumulate(own), strict=True))
    return totals, rows.get(Key(f"{metric.name}_sum", ""), 0.0)


def add_counts(session: Session, job_id: str, counts: Counts) -> None:
    """Raise a job's counters in this transaction; what is not above zero is left out."""
    rows = [
        {"job_id": job_id, "name": name, "value": amount}
        for name, amount in counts.items()
        if amount > 0 and math.isfinite(amount)
    ]
    if not rows:
        return
    session.connection().execute(_RAISE, rows)


class Standing(Protocol):
    """What is known of a run before a report: `Job` has it, and any row with these columns."""

    @property
    def id(self) -> str: ...

    @property
    def attempt(self) -> int: ...

    @property
    def last_report_s(self) -> float | None: ...


def count_round(
    session: Session,
    job: Standing,
    *,
    finished: Plan,
    report: RoundReport,
    verdict: Verdict,
    after: ScheduleState,
    at_s: float,
) -> Restart | None:
    """Count a round that is stored now for the first time, in the transaction that stores it.

    Args:
        job: As it was before this report.
        finished: The plan that the round followed.
        after: The state that was decided.
        at_s: When the report came.

    Returns:
        The restart that this round was the first of; None for any other.
    """
    counts = Tally(counts_of_round(finished, report, verdict, after))
    restart = None
    if job.attempt > 1 and _is_first_of_attempt(session, job):
        restart = _restart(session, job, finished.num_replicas, at_s)
        if restart.without_report_s is not None:
            counts.update(observed(RECOVERY_DURATION, restart.without_report_s))
        counts.update(_resized(restart.replicas_before, restart.replicas))
    add_counts(session, job.id, counts)
    return restart


def counts_of_round(
    finished: Plan, report: RoundReport, verdict: Verdict, after: ScheduleState
) -> dict[str, float]:
    """What one round adds, whatever was before it."""
    facts = report.facts
    counts: dict[str, float] = {}
    if "sync_s" in facts:
        counts |= observed(SYNC_DURATION, facts["sync_s"])
    if finished.end == "average" and not verdict.rolls_back:
        counts[SYNC_BYTES.name] = facts.get("sync_bytes", 0.0)
        for reason, number in Tally(reason for reason in verdict.reasons if reason).items():
            counts[key_of(QUARANTINES, reason)] = number
    if "samples" in facts:
        counts[SAMPLES.name] = facts["samples"]
    if verdict.rolls_back:
        counts[ROLLBACKS.name] = 1.0
    if finished.is_search and after.search is not None:
        tried = [point for point in after.search.points if point.round == finished.round]
        counts[SEARCH_STEPS.name] = report.steps
        counts[SEARCH_DEAD.name] = sum(point.is_dead for point in tried)
    return counts | _resized(finished.num_replicas, report.next_num_replicas)


def counts_of_event(type: str, data: Mapping[str, Any]) -> dict[str, float]:
    """What an event adds that is recorded in the same transaction; most add nothing.

    Rounds are counted from their reports, and failures with the step that follows from them, so their own
    events are none of these.
    """
    if type == "override" and data.get("state") in OVERRIDES.values:
        return one(OVERRIDES, data["state"])
    if type == "audit" and data.get("action") == "rollback":
        return one(ROLLBACKS)
    return {}


def _resized(before: int | None, after: int | None) -> dict[str, float]:
    if before is None or after is None or after == before:
        return {}
    return one(RESIZES, Direction.UP if after > before else Direction.DOWN)


def _restart(session: Session, job: Standing, num_replicas: int, at_s: float) -> Restart:
    """Seen from its attempt's first report."""
    without_report_s = None
    if job.last_report_s is not None and not _was_paused(session, job.id, job.last_report_s):
        without_report_s = max(at_s - job.last_report_s, 0.0)
    newest = session.execute(
        select(Round.item)
        .where(Round.job_id == job.id, Round.attempt < job.attempt)
        .order_by(Round.attempt.desc(), Round.round.desc())
        .limit(1)
    ).scalar()
    teams = json.loads(newest)["plan"].get("teams") if newest is not None else None
    return Restart(without_report_s, len(teams) if teams else None, num_replicas)


def _is_first_of_attempt(session: Session, job: Standing) -> bool:
    has_one = exists().where(Round.job_id == job.id, Round.attempt == job.attempt)
    return not session.execute(select(has_one)).scalar()


def _was_paused(session: Session, job_id: str, since_s: float) -> bool:
    paused = exists().where(
        Transition.job_id == job_id, Transition.state == State.PAUSED, Transition.at_s >= since_s
    )
    return bool(session.execute(select(paused)).scalar())


def rows_by_job(rows: Iterable[tuple[str, str, float]]) -> dict[str, dict[Key, float]]:
    """``(job, name, value)`` rows of the table, taken apart."""
    found: dict[str, dict[Key, float]] = {}
    for job_id, name, value in rows:
        found.setdefault(job_id, {})[parse_key(name)] = value
    return found
