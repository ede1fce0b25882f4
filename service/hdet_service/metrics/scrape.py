"""A scrape: five queries, whatever the number of jobs, and the views of the runs that go on.

Jobs that are over have no series once their grace has passed, and nothing of them is read. Of those that
go on, only what has changed since the scrape before is read and computed anew.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric as Family
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from sqlalchemy import ColumnElement, Row, and_, func, or_, select
from sqlalchemy.orm import Session

import hdet_ray
from hdet_service.metrics import catalogue
from hdet_service.metrics.catalogue import METRICS, Metric
from hdet_service.metrics.counts import Key, cumulative, rows_by_job
from hdet_service.metrics.requests import RequestTally
from hdet_service.metrics.runs import RunView, view_from_database
from hdet_service.states import ACTIVE, TERMINAL, Reason, State
from hdet_service.store.database import Store
from hdet_service.store.models import Counter, Job, OverrideRow

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

MAX_VIEWS = 1024
"""Views that rounds leave behind: a scrape gives up those of jobs that are over, but there may be none."""

_PERSISTED = tuple(m for m in METRICS if m.is_of_run and m.kind != "gauge")
_ONLY_WITH_SEARCH = frozenset({catalogue.SEARCH_DEAD.name, catalogue.SEARCH_STEPS.name})


@dataclass(slots=True)
class _Families:
    """Families in the making, in the catalogue's order."""

    families: dict[str, Family] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for metric in METRICS:
            name = metric.name.removesuffix("_total") if metric.kind == "counter" else metric.name
            self.families[metric.name] = Family(name, metric.help, metric.kind)

    def add(self, metric: Metric, labels: Iterable[str], value: float, suffix: str = "") -> None:
        """One sample; ``labels`` in the metric's order."""
        pairs = dict(zip(metric.labels, labels, strict=True))
        self.families[metric.name].add_sample(metric.name + suffix, pairs, value)

    def add_histogram(
        self, metric: Metric, labels: tuple[str, ...], totals: Iterable[tuple[str, float]], sum_s: float
    ) -> None:
        """A histogram from its cumulative buckets, of which the last is infinity's."""
        family, pairs = self.families[metric.name], dict(zip(metric.labels, labels, strict=True))
        count = 0.0
        for bound, total in totals:
            family.add_sample(f"{metric.name}_bucket", {**pairs, "le": bound}, total)
            count = total
        family.add_sample(f"{metric.name}_count", pairs, count)
        family.add_sample(f"{metric.name}_sum", pairs, sum_s)


class Metrics(RequestTally):
    """Everything that `/metrics` says.

    Args:
        store: Its clock says which jobs have been over for too long.
        finished_series_grace_s: A finished (or paused) job's series go away after this.
    """

    def __init__(
        self,
        store: Store,
        *,
        finished_series_grace_s: float = 300.0,
        clock: Callable[[], float] | None = None,
    ) -> None:
        super().__init__()
        self._store = store
        self._grace_s = finished_series_grace_s
        self._clock = clock or store.clock
        self._views: dict[str, RunView] = {}
        self.rendered_s = 0.0
        """How long the newest scrape took here."""

    def observe_round(self, job_id: str, view: RunView) -> None:
        """Take a run's view from where it was decided, so that the next scrape need not read it."""
        self._views.pop(job_id, None)
        self._views[job_id] = view  # the newest stands last
        if len(self._views) > MAX_VIEWS:  # nobody scrapes, or reads the rest from the database
            for oldest in list(self._views)[:-MAX_VIEWS]:
                self._views.pop(oldest, None)

    async def scrape(self) -> bytes:
        """The exposition, in Prometheus' text format; made in one of the store's reading threads."""
        return await self._store.read(self._render)

    def render(self) -> bytes:
        """The same in this thread."""
        return self._store.read_sync(self._render)

    def _render(self, session: Session) -> bytes:
        began_s = time.perf_counter()
        families = _Families()
        self._add_service(families, session)
        self._add_requests(families)
        self._add_runs(families, session)
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Collected(families))
        text = generate_latest(registry)
        self.rendered_s = time.perf_counter() - began_s
        return text

    def _add_service(self, families: _Families, session: Session) -> None:
        families.add(catalogue.BUILD_INFO, [hdet_ray.__version__], 1.0)
        counted = select(Job.state, func.count()).group_by(Job.state)
        jobs = dict(session.execute(counted).all())
        for state in catalogue.JOBS.values:
            families.add(catalogue.JOBS, [state], jobs.get(state, 0))

    def _add_requests(self, families: _Families) -> None:
        for result in catalogue.JOB_SUBMISSIONS.values:
            families.add(catalogue.JOB_SUBMISSIONS, [result], self.submissions[result])
        for labels, number in sorted(self.requests.copy().items()):
            families.add(catalogue.HTTP_REQUESTS, labels, number)
        for key, buckets in sorted(self.durations.copy().items()):
            totals = _cumulative(catalogue.HTTP_DURATION, buckets)
            families.add_histogram(catalogue.HTTP_DURATION, key, totals, self.duration_sums_s[key])
        totals = _cumulative(catalogue.EXCHANGE_DURATION, self.exchanges)
        families.add_histogram(catalogue.EXCHANGE_DURATION, (), totals, self.exchange_sum_s)
        families.add(catalogue.SSE_CLIENTS, [], self.sse_clients)

    def _add_runs(self, families: _Families, session: Session) -> None:
        is_shown = _is_shown(self._clock() - self._grace_s)
        rows = session.execute(_runs(is_shown)).all()
        counters = rows_by_job(
            session.execute(select(Counter.job_id, Counter.name, Counter.value).join(Job).where(is_shown))
        )
        active = dict(
            session.execute(
                select(OverrideRow.job_id, func.count())
                .join(Job)
                .where(is_shown, OverrideRow.state == "applied")
                .group_by(OverrideRow.job_id)
            ).all()
        )
        for row in rows:
            view = self._view(session, row)
            _add_row(families, row)
            families.add(catalogue.OVERRIDE_ACTIVE, [row.id], active.get(row.id, 0))
            _add_counters(families, row.id, counters.get(row.id, {}), view)
            for sample in view.samples if view else ():
                families.add(sample.metric, (row.id, *sample.labels), sample.value)
        shown = {row.id for row in rows}
        for job_id in [job_id for job_id in self._views.copy() if job_id not in shown]:
            self._views.pop(job_id, None)

    def _view(self, session: Session, row: Row[tuple[object, ...]]) -> RunView | None:
        known = self._views.get(row.id)
        if known is not None:
            held, stored = (known.key.attempt, known.key.round), (row.attempt, row.round)
            # What was decided after this transaction began is newer than the row.
            if held > stored or (held == stored and known.key.plan_digest == row.plan_digest):
                return known
        view = view_from_database(session, row.id)
        if view is not None:
            self._views[row.id] = view
        return view


class _Collected:
    """What a registry asks: families that were collected already; those without a sample are left out."""

    def __init__(self, families: _Families) -> None:
        self._families = families

    def collect(self) -> Iterator[Family]:
        return (family for family in self._families.families.values() if family.samples)


def _cumulative(metric: Metric, buckets: Iterable[int]) -> list[tuple[str, float]]:
    bounds = [*map(repr, metric.buckets), "+Inf"]
    return list(zip(bounds, map(float, accumulate(buckets)), strict=True))


def _is_shown(since_s: float) -> ColumnElement[bool]:
    """Runs that go on, wait for a retry, or ended (or were paused) a short while ago."""
    return or_(
        Job.state.in_([str(state) for state in ACTIVE]),
        and_(Job.state == State.QUEUED, Job.submission > 0),
        and_(Job.state == State.PAUSED, Job.updated_s > since_s),
        and_(Job.state.in_([str(state) for state in TERMINAL]), Job.finished_s > since_s),
    )


def _runs(is_shown: ColumnElement[bool]):  # type: ignore[no-untyped-def]  # SQLAlchemy's type names each column
    return (
        select(
            Job.id,
            Job.state,
            Job.reason,
            Job.attempt,
            Job.round,
            Job.step,
            Job.plan_digest,
            Job.replicas_present,
            Job.last_report_s,
            Job.last_checkpoint_s,
            func.json_extract(Job.spec, "$.replicas.max").label("max_replicas"),
        )
        .where(is_shown)
        .order_by(Job.id)
    )


def _add_row(families: _Families, row: Row[tuple[object, ...]]) -> None:
    waits_for_slot = (row.state, row.reason) == (State.QUEUED, Reason.WAITING_FOR_SLOT)
    is_on = row.state in (State.STARTING, State.RUNNING, State.DEGRADED, State.QUEUED) and not waits_for_slot
    present = row.replicas_present if row.state in ACTIVE else 0
    families.add(catalogue.REPLICAS, [row.id, "wanted"], (row.max_replicas or 1) if is_on else 0)
    families.add(catalogue.REPLICAS, [row.id, "present"], present)
    families.add(catalogue.ROUND, [row.id], row.round)
    families.add(catalogue.STEP, [row.id], row.step)
    if row.last_report_s is not None:
        families.add(catalogue.LAST_SYNC, [row.id], row.last_report_s)
    if row.last_checkpoint_s is not None:
        families.add(catalogue.LAST_CHECKPOINT, [row.id], row.last_checkpoint_s)


def _add_counters(families: _Families, job_id: str, rows: Mapping[Key, float], view: RunView | None) -> None:
    """Counters of a run, from 0 on: an increase from nothing would not be seen."""
    values: dict[str, dict[str, float]] = defaultdict(dict)
    for key, value in rows.items():
        values[key.name][key.value] = value
    has_search = view is not None and view.state.search is not None
    for metric in _PERSISTED:
        if metric.kind == "histogram":
            families.add_histogram(metric, (job_id,), *cumulative(metric, rows))
            continue
        own = values.get(metric.name)
        if own is None and (
            metric is catalogue.SAMPLES or (metric.name in _ONLY_WITH_SEARCH and not has_search)
        ):
            continue
        for label in metric.values or ("",):
            labels = [job_id, label] if metric.values else [job_id]
            families.add(metric, labels, (own or {}).get(label, 0.0))
