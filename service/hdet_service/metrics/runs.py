"""One run's gauges: what its newest report and its plan say, as samples.

A view is made where a round is decided, which has all of it at hand, or from the database after a restart.
Its samples are computed when they are first asked for, and kept: between two rounds a scrape costs nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from hdet_ray.core.codec import HParamKey, digest, from_json
from hdet_ray.core.decide import judge_report
from hdet_ray.core.health import Verdict
from hdet_ray.core.plan import RATE, Plan
from hdet_ray.core.planning import plan_for
from hdet_ray.core.report import RoundReport
from hdet_ray.core.state import ScheduleState, state_from_json
from hdet_ray.exceptions import HDETError
from hdet_service.metrics import catalogue
from hdet_service.metrics.catalogue import MAX_HPARAMS, MAX_REPLICA_SERIES, Metric
from hdet_service.store.models import Job, Round

_BOUND_TOLERANCE = 1e-9
"""Relative: a value clipped to a bound may differ in its last bits."""


class RunSample(NamedTuple):
    """One value of a run, without the label ``run``."""

    metric: Metric
    labels: tuple[str, ...]
    """In the metric's order, from its second label on."""
    value: float


class ViewKey(NamedTuple):
    """What a view was made of: another one of the same job is stale."""

    attempt: int
    round: int
    plan_digest: str | None


@dataclass(frozen=True, kw_only=True)
class RunView:
    """A run between two rounds."""

    key: ViewKey
    state: ScheduleState
    plan: Plan
    """The round that is running; of 0 steps where the schedule has ended."""
    report: RoundReport | None = None
    """Of the round before it."""
    verdict: Verdict | None = None

    @cached_property
    def samples(self) -> tuple[RunSample, ...]:
        """All gauges that come from reports and plans."""
        return (*_of_plan(self), *_of_search(self), *_of_report(self), *_of_autolr(self.state))


def view_from_database(session: Session, job_id: str) -> RunView | None:
    """The view of a job as it is stored; None where no worker has opened the run, or it can't be read."""
    job = session.get(Job, job_id)
    if job is None or job.schedule is None or job.plan is None:
        return None
    key = ViewKey(job.attempt, job.round, job.plan_digest)
    try:
        state = state_from_json(job.schedule)
        plan = plan_for(state, len(job.plan["teams"]))
        report = _newest_report(session, job)
        verdict = None if report is None else _verdict(job.schedule_before, report)
    except (
        HDETError,
        KeyError,
        TypeError,
    ):  # of a newer release, or thinned: the rest is still worth a scrape
        return None
    return RunView(key=key, state=state, plan=plan, report=report, verdict=verdict)


def _newest_report(session: Session, job: Job) -> RoundReport | None:
    item = session.execute(
        select(Round.item)
        .where(
            Round.job_id == job.id,
            Round.round == job.round - 1,
            Round.is_abandoned.is_(False),
            Round.is_thinned.is_(False),
        )
        .order_by(Round.attempt.desc())
        .limit(1)
    ).scalar()
    if item is None:
        return None
    report: RoundReport = from_json(RoundReport, json.loads(item)["report"])
    return report


def _verdict(before: Mapping[str, Any] | None, report: RoundReport) -> Verdict | None:
    """The boundary's verdict anew; None where the state before it is not at hand (a restart went back)."""
    if before is None:
        return None
    state = state_from_json(dict(before))
    finished = plan_for(state, len(report.replicas))
    return judge_report(state, finished, report) if digest(finished) == report.plan_digest else None


def _of_plan(view: RunView) -> Iterator[RunSample]:
    plan = view.plan
    for phase in catalogue.PHASE.values:
        yield RunSample(catalogue.PHASE, (phase,), float(phase == plan.phase))
    room = MAX_REPLICA_SERIES
    for key in sorted(plan.values)[:MAX_HPARAMS]:
        base = _base(view, key)
        if base is None:
            continue
        labels = (key[0], str(key[1]))
        yield RunSample(catalogue.BASE_HPARAM, labels, base)
        if not plan.is_search and key in view.state.bounds:
            yield RunSample(catalogue.AT_BOUND, labels, _at_bound(view, key))
        room -= plan.num_replicas
        if room < 0:
            continue
        for replica, multiplier in enumerate(plan.values[key]):
            yield RunSample(catalogue.REPLICA_HPARAM, (*labels, str(replica)), base * multiplier)


def _base(view: RunView, key: HParamKey) -> float | None:
    plan = view.plan
    if key[0] != RATE or plan.shape != "external":
        return plan.base.get(key)
    # The user's own scheduler says the rate; the newest report has what it said last.
    external = None if view.report is None else view.report.external_rates.get(key)
    return None if external is None else external * plan.scale[key]


def _at_bound(view: RunView, key: HParamKey) -> float:
    value = (view.plan.peak if key[0] == RATE else view.plan.base).get(key, math.nan)
    return float(any(math.isclose(value, end, rel_tol=_BOUND_TOLERANCE) for end in view.state.bounds[key]))


def _of_search(view: RunView) -> Iterator[RunSample]:
    search, state = view.state.search, view.state
    if search is None:
        return
    factor = math.exp(search.best)
    for group, (rate, ratio) in enumerate(zip(state.config.max_lr, state.ratios, strict=True)):
        if group < MAX_HPARAMS:
            yield RunSample(catalogue.SEARCH_BEST, (RATE, str(group)), rate * factor * ratio)


def _of_report(view: RunView) -> Iterator[RunSample]:
    report, verdict = view.report, view.verdict
    if report is None:
        return
    if "wall_s" in report.facts and report.calls > 0:
        expected_s = view.plan.num_steps * report.facts["wall_s"] / report.calls
        yield RunSample(catalogue.ROUND_EXPECTED, (), expected_s)
    for replica, told in enumerate(report.replicas):
        if told.has_loss:
            yield RunSample(catalogue.REPLICA_LOSS, (str(replica),), told.loss)
    if verdict is not None:
        for replica, weight in enumerate(verdict.weights):
            yield RunSample(catalogue.REPLICA_WEIGHT, (str(replica),), weight)
    healthy = [True] * len(report.replicas) if verdict is None else [w > 0 for w in verdict.weights]
    losses = [
        told.loss
        for told, is_healthy in zip(report.replicas, healthy, strict=True)
        if is_healthy and told.has_loss and math.isfinite(told.loss)
    ]
    if len(losses) > 1:
        yield RunSample(catalogue.LOSS_SPREAD, (), max(losses) - min(losses))
    if "param_divergence_ratio" in report.facts:
        yield RunSample(catalogue.DIVERGENCE, (), report.facts["param_divergence_ratio"])


def _of_autolr(state: ScheduleState) -> Iterator[RunSample]:
    for metric, values in (
        (catalogue.AUTOLR_DELTA, state.delta),
        (catalogue.AUTOLR_VELOCITY, state.velocity),
    ):
        for (name, group), value in sorted(values.items())[:MAX_HPARAMS]:
            yield RunSample(metric, (name, str(group)), value)
