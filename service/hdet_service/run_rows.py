"""A run's rows: its standing read from the job's row, and what the exchange decided written back.

Decoded standings are kept between exchanges, so that an exchange parses no JSON of the database. One is
used only while the row still says the same attempt, round and plan, and is taken out while a write that
may change it is under way: a write that fails leaves nothing behind that isn't stored.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

from sqlalchemy import Table, Text, bindparam, insert, literal, select, update
from sqlalchemy.orm import Session, defer

from hdet_ray.core.codec import digest, from_json, to_json
from hdet_ray.core.plan import Plan
from hdet_ray.core.report import RoundReport
from hdet_ray.core.state import state_from_json, state_to_json
from hdet_service.exchange import Line, Standing, Taken
from hdet_service.problems import missing_job
from hdet_service.store.models import WITHOUT_SCHEDULE, Command, Job, LedgerStart, Round

MAX_KEPT = 256
_IN_SESSION = "standings"


_JOBS: Table = Job.__table__  # type: ignore[assignment]
_LINES: Table = Round.__table__  # type: ignore[assignment]


class RunRow(NamedTuple):
    """A job's row, as far as an exchange needs it."""

    id: str
    state: str
    wanted: str | None
    submission: int
    attempt: int
    round: int
    plan_digest: str | None
    steps_per_s: float | None
    last_report_s: float | None


# Statements of every exchange: built once, since building one costs more than running it.
_READ_RUN = select(*(_JOBS.c[name] for name in RunRow._fields)).where(_JOBS.c.id == bindparam("job_id"))
_WRITE_AGAIN = (
    update(_JOBS)
    .where(_JOBS.c.id == bindparam("job_id"))
    .values(
        attempt=bindparam("to_attempt"),
        round=bindparam("to_round"),
        step=bindparam("to_step"),
        total_steps=bindparam("to_total_steps"),
        schedule=bindparam("to_schedule"),
        plan=bindparam("to_plan", type_=Text),  # the text as it stands in the line
        plan_digest=bindparam("to_plan_digest"),
        replicas_present=bindparam("to_replicas"),
        steps_per_s=bindparam("to_steps_per_s"),
        last_report_s=bindparam("now_s"),
    )
)
_WRITE_NEXT = _WRITE_AGAIN.values(schedule_before=_JOBS.c.schedule)  # the database's own copy
_WRITE_BEFORE = (
    update(_JOBS).where(_JOBS.c.id == bindparam("job_id")).values(schedule_before=bindparam("before"))
)
_INSERT_LINE = insert(_LINES).prefix_with("OR REPLACE")


class Standings:
    """Standings of runs, decoded."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Standing] = OrderedDict()

    def take(self, session: Session, job: Job | RunRow) -> Standing | None:
        """Where the run stands, for a write that may change it; None where no worker has opened it."""
        kept = self._kept.pop(job.id, None)
        if kept is not None and _is_of(kept, job):
            return kept
        return None if job.plan_digest is None else read_standing(require_job(session, job.id))

    def put(self, session: Session, job_id: str, standing: Standing) -> None:
        """Keep this one once the write is committed."""
        session.info.setdefault(_IN_SESSION, {})[job_id] = standing

    def after_commit(self, info: Mapping[Any, Any]) -> None:
        """`Store.on_commit`'s listener: in the writer's thread, in the order of the writes."""
        for job_id, standing in info.get(_IN_SESSION, {}).items():
            self._kept[job_id] = standing
            self._kept.move_to_end(job_id)
        while len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)


def load_job(session: Session, job_id: str) -> Job | None:
    """The job without its large columns; they are read when they are asked for."""
    return session.scalars(
        select(Job).where(Job.id == job_id).options(*WITHOUT_SCHEDULE, defer(Job.spec))
    ).one_or_none()


def require_job(session: Session, job_id: str) -> Job:
    """The same.

    Raises:
        NotFound: there is none.
    """
    job = load_job(session, job_id)
    if job is None:
        raise missing_job(job_id)
    return job


def read_standing(job: Job) -> Standing | None:
    """Where a run stands, from its row."""
    if job.plan_digest is None or job.schedule is None or job.plan is None:
        return None
    return Standing(
        attempt=job.attempt,
        state=state_from_json(job.schedule),
        before=None if job.schedule_before is None else state_from_json(job.schedule_before),
        plan=from_json(Plan, job.plan),
        plan_digest=job.plan_digest,
    )


def line_of(session: Session, job_id: str, round: int) -> str | None:
    """The newest chain's whole line of a round."""
    return session.scalar(
        select(Round.item).where(
            Round.job_id == job_id,
            Round.round == round,
            Round.is_abandoned.is_(False),
            Round.is_thinned.is_(False),
        )
    )


def has_rounds_of(session: Session, job_id: str, attempt: int) -> bool:
    """A round that this attempt has trained is stored, left behind or not."""
    query = select(Round.round).where(Round.job_id == job_id, Round.attempt == attempt).limit(1)
    return session.scalar(query) is not None


def ledger_start(session: Session, job_id: str) -> tuple[int, str] | None:
    """Round and digest of the state that the ledger starts with."""
    start = session.get(LedgerStart, job_id)
    return None if start is None else (start.round, digest(state_from_json(start.header)))


def load_run(session: Session, job_id: str) -> RunRow | None:
    """What an exchange needs of a job: read without its large columns, and without the ORM's ado."""
    row = session.connection().execute(_READ_RUN, {"job_id": job_id}).one_or_none()
    return None if row is None else RunRow(*row)


def write_taken(session: Session, run: RunRow, taken: Taken, now_s: float) -> None:
    """Store a report that was taken: lines, commands, and where the run stands now."""
    if taken.returned is not None:
        _fold(session, Command.folded_round == taken.returned, run.id, None)
    for round in sorted(set(taken.folded.values())):
        ids = [id for id, at in taken.folded.items() if at == round]
        _fold(session, Command.id.in_(ids), run.id, round)
    for line in taken.lines:
        if line.round < run.round:
            # Another attempt's line of the same round gives way; the same attempt's is replaced.
            abandon(session, run.id, line.round, line.round)
        _insert_line(session, run.id, line, now_s)
    standing, report = taken.standing, taken.lines[-1].report
    if taken.returned is not None:
        before = None if standing.before is None else state_to_json(standing.before)
        session.connection().execute(_WRITE_BEFORE, {"job_id": run.id, "before": before})
    session.connection().execute(
        _WRITE_AGAIN if taken.returned is not None else _WRITE_NEXT,
        {
            "job_id": run.id,
            "to_attempt": standing.attempt,
            "to_round": standing.round,
            "to_step": standing.state.step,
            "to_total_steps": standing.state.config.total_steps,
            "to_schedule": state_to_json(standing.state),
            "to_plan": taken.lines[-1].encoded.plan,
            "to_plan_digest": standing.plan_digest,
            "to_replicas": report.next_num_replicas or len(report.replicas),
            "to_steps_per_s": _steps_per_s(run.steps_per_s, report),
            "now_s": now_s,
        },
    )


def _steps_per_s(before: float | None, report: RoundReport) -> float | None:
    """Smoothed over rounds."""
    seconds = report.facts.get("wall_s", 0.0) + report.facts.get("sync_s", 0.0)
    if seconds <= 0:
        return before
    rate = report.steps / seconds
    return rate if before is None else 0.7 * before + 0.3 * rate


def write_opened(session: Session, job: Job, standing: Standing) -> None:
    """Store that an attempt goes on from its state; rounds from there on were abandoned before."""
    job.schedule_before = None if standing.before is None else state_to_json(standing.before)
    _write_standing(job, standing, plan_text=json.dumps(to_json(standing.plan), allow_nan=False))


def start_ledger(session: Session, job_id: str, standing: Standing) -> None:
    """Let the job's ledger start with this state."""
    start = session.get(LedgerStart, job_id)
    if start is None:
        start = LedgerStart(job_id=job_id)
        session.add(start)
    start.round, start.header = standing.round, state_to_json(standing.state)


def abandon(session: Session, job_id: str, first: int, last: int | None = None) -> int:
    """Mark the newest chain's rounds from ``first`` on as left behind; how many they were."""
    query = update(Round).where(Round.job_id == job_id, Round.is_abandoned.is_(False), Round.round >= first)
    if last is not None:
        query = query.where(Round.round <= last)
    return session.execute(query.values(is_abandoned=True)).rowcount  # type: ignore[attr-defined,no-any-return]


def _write_standing(job: Job, standing: Standing, *, plan_text: str) -> None:
    job.attempt = standing.attempt
    job.round = standing.round
    job.step = standing.state.step
    job.total_steps = standing.state.config.total_steps
    job.schedule = state_to_json(standing.state)
    job.plan = literal(plan_text, Text)  # a text already: the column would encode it once more
    job.plan_digest = standing.plan_digest


def _insert_line(session: Session, job_id: str, line: Line, now_s: float) -> None:
    session.connection().execute(
        _INSERT_LINE,
        {
            "job_id": job_id,
            "attempt": line.attempt,
            "round": line.round,
            "item": line.encoded.line,
            "at_s": now_s,
            "is_abandoned": False,
            "is_thinned": False,
        },
    )


def _fold(session: Session, which: Any, job_id: str, round: int | None) -> None:
    session.execute(
        update(Command).where(Command.job_id == job_id, which).values(folded_round=round),
        execution_options={"synchronize_session": False},
    )


def _is_of(standing: Standing, job: Job | RunRow) -> bool:
    return (standing.attempt, standing.round, standing.plan_digest) == (
        job.attempt,
        job.round,
        job.plan_digest,
    )
