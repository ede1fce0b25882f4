"""What stands on the pages: read in one go from the database, as plain values for the templates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from sqlalchemy import and_, func, select
from sqlalchemy.orm import Session

import hdet_ray
from hdet_ray.core.plan import RATE, value_at
from hdet_service.auth import Principal
from hdet_service.console import sentences
from hdet_service.console.charts import charts_of
from hdet_service.console.record import RunRecord, RunRecords
from hdet_service.console.sentences import duration_text, loss_text, rate_text
from hdet_service.job_view import progress
from hdet_service.states import ACTIVE, TERMINAL, State
from hdet_service.store.models import Event, Job, OverrideRow

PAGE_SIZE = 50
_MAX_EVENTS = 40
_MAX_OVERRIDES = 20
_MAX_REPLICA_ROWS = 64

TONES = {
    State.QUEUED: "quiet",
    State.STARTING: "busy",
    State.RUNNING: "good",
    State.DEGRADED: "warn",
    State.STOPPING: "busy",
    State.PAUSED: "quiet",
    State.SUCCEEDED: "done",
    State.FAILED: "bad",
    State.CANCELED: "quiet",
}
"""A colour for each state; its name stands beside it always."""

FILTERS = {
    "all": tuple(State),
    "active": (*sorted(ACTIVE), State.QUEUED, State.PAUSED),
    "succeeded": (State.SUCCEEDED,),
    "failed": (State.FAILED,),
}


def make_templates() -> Environment:
    """The templates; everything that is put into them is escaped."""
    environment = Environment(
        loader=PackageLoader("hdet_service.console"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(release=hdet_ray.__version__)
    return environment


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One number and what it is."""

    name: str
    value: str
    hint: str = ""
    at_s: float | None = None
    """The value is how long ago this was."""


def jobs_page(
    session: Session, who: Principal, chosen: str, before: str | None, now_s: float
) -> dict[str, Any]:
    """The list of jobs that a caller may read, newest first.

    Args:
        session: A read.
        who: Submitters see their own jobs only.
        chosen: One of `FILTERS`.
        before: Id of the last job of the page before.
        now_s: For ages.
    """
    mine = [] if who.sees_all_jobs else [Job.owner == who.name]
    counted = select(Job.state, func.count()).where(*mine).group_by(Job.state)
    counts = dict(session.execute(counted).all())
    query = select(Job).where(*mine, Job.state.in_([str(s) for s in FILTERS[chosen]]))
    if before is not None:
        query = query.where(Job.id < before)
    jobs = list(session.scalars(query.order_by(Job.id.desc()).limit(PAGE_SIZE + 1)))
    rows = [_row(job, now_s) for job in jobs[:PAGE_SIZE]]
    return {
        "rows": rows,
        "next": rows[-1]["id"] if len(jobs) > PAGE_SIZE else None,
        "chosen": chosen,
        "filters": [
            {"name": name, "count": sum(counts.get(str(s), 0) for s in states)}
            for name, states in FILTERS.items()
        ],
        "shows_owner": who.sees_all_jobs,
        "is_first_page": before is None,
        "now_s": now_s,
    }


def _row(job: Job, now_s: float) -> dict[str, Any]:
    return {
        "id": job.id,
        "name": job.name,
        "owner": job.owner,
        **_standing(job),
        "created": sentences.time_text(job.created_s),
        "age": sentences.ago_text(job.created_s, now_s),
        "at_s": job.created_s,
    }


def _standing(job: Job) -> dict[str, Any]:
    state, done = State(job.state), progress(job)
    total = done["total_steps"]
    share = min(job.step / total, 1.0) if total else 0.0
    is_on = state in (State.RUNNING, State.DEGRADED)
    return {
        "state": job.state,
        "tone": TONES[state],
        "reason": sentences.words(job.reason),
        "message": job.message,
        "says_more": sentences.words(job.reason).lower() != job.state.lower(),
        "step": job.step,
        "total": total,
        "percent": math.floor(100 * share),
        "speed": f"{done['steps_per_s']:.3g} steps/s" if is_on and done["steps_per_s"] else "",
        "eta": duration_text(done["eta_s"]) if is_on and done["eta_s"] is not None else "",
        "present": job.replicas_present,
        "wanted": job.spec["replicas"]["max"],
        "is_over": state in TERMINAL,
    }


def job_page(session: Session, job: Job, records: RunRecords, now_s: float) -> dict[str, Any]:
    """One job's page."""
    record = records.read(session, job)
    return {
        "job": {"id": job.id, "name": job.name, "owner": job.owner, **_standing(job)},
        "version": version_of(session, job),
        "now_s": now_s,
        "tiles": _tiles(job, record, now_s),
        "charts": charts_of(record) if record is not None else [],
        "notes": _notes(record),
        "replicas": _replicas(record),
        "overrides": _overrides(session, job),
        "events": _events(session, job, now_s),
        "times": [
            ("submitted", sentences.time_text(job.created_s)),
            ("started", sentences.time_text(job.started_s)),
            ("finished", sentences.time_text(job.finished_s)),
        ],
    }


def version_of(session: Session, job: Job) -> str:
    """Changes whenever the page may."""
    newest = session.scalar(select(func.max(Event.id)).where(Event.job_id == job.id)) or 0
    return f"{newest}.{job.version}.{job.round}"


def _tiles(job: Job, record: RunRecord | None, now_s: float) -> list[Tile]:
    wanted = job.spec["replicas"]["max"]
    present = 0 if State(job.state) not in ACTIVE else job.replicas_present
    tiles = [Tile(name="replicas", value=f"{present} of {wanted}", hint="present")]
    if record is None:
        return [*tiles, Tile(name="attempt", value=str(job.attempt or "–"), hint=_failures(job))]
    state, plan = record.state, record.plan
    config = state.config
    phase = "done" if not plan.num_steps else plan.phase.replace("_", "-")
    tiles.append(Tile(name="round", value=f"{state.round:,}", hint=phase))
    base = plan.base.get((RATE, 0))
    tiles.append(Tile(name="base rate", value=rate_text(base), hint="now"))
    peak = plan.peak.get((RATE, 0))
    given = rate_text(config.max_lr[0])
    if state.search is not None:
        best = rate_text(config.max_lr[0] * state.ratios[0] * math.exp(state.search.best))
        is_found = state.search.result is not None
        tiles.append(
            Tile(name="peak found" if is_found else "best so far", value=best, hint=f"{given} given")
        )
    else:
        tiles.append(Tile(name="peak", value=rate_text(peak), hint=f"{given} given"))
    loss = record.rounds[-1].loss if record.rounds else None
    tiles.append(Tile(name="training loss", value=loss_text(loss), hint="newest round"))
    last = sentences.ago_text(job.last_report_s, now_s)
    hint = _checkpoint(job, now_s)
    tiles.append(Tile(name="last report", value=last, hint=hint, at_s=job.last_report_s))
    tiles.append(Tile(name="attempt", value=str(job.attempt), hint=_failures(job)))
    return tiles


def _failures(job: Job) -> str:
    return f"{job.failures} failure{'' if job.failures == 1 else 's'}"


def _checkpoint(job: Job, now_s: float) -> str:
    if job.last_checkpoint_s is None:
        return "nothing saved yet"
    return f"saved {sentences.ago_text(job.last_checkpoint_s, now_s)}"


def _notes(record: RunRecord | None) -> list[str]:
    """What the run wants people to know: at its start, and now."""
    if record is None:
        return []
    return list(dict.fromkeys([*record.start.notes, *record.state.notes]))


def _replicas(record: RunRecord | None) -> dict[str, Any]:
    """Each replica in the running round, and what it told of the one before; of many, the worst."""
    if record is None:
        return {"rows": [], "hidden": 0}
    plan, report = record.plan, record.newest
    reports: Sequence[Any] = report.replicas if report is not None else ()
    newest = record.rounds[-1] if record.rounds else None
    rows: list[dict[str, Any]] = []
    for replica, team in enumerate(plan.teams):
        told = reports[replica] if replica < len(reports) else None
        loss = told.loss if told is not None and told.has_loss else None
        rows.append(
            {
                "replica": replica,
                "team": "–" if team is None else team,
                "rate": rate_text(_rate(record, replica)),
                "loss": loss_text(loss),
                "probe": loss_text(told.probe_loss) if told is not None else "–",
                "why": newest.left_out.get(replica, "") if newest is not None else "",
                "rank": math.inf if loss is None or not math.isfinite(loss) else loss,
            }
        )
    if len(rows) > _MAX_REPLICA_ROWS:
        rows.sort(key=lambda row: (-row["rank"], row["replica"]))
    return {"rows": rows[:_MAX_REPLICA_ROWS], "hidden": max(len(rows) - _MAX_REPLICA_ROWS, 0)}


def _rate(record: RunRecord, replica: int) -> float | None:
    plan, newest = record.plan, record.newest
    if plan.is_search:
        return plan.peak[RATE, 0] * plan.values[RATE, 0][replica]
    external = None if newest is None else newest.external_rates.get((RATE, 0))
    if plan.shape == "external" and external is None:
        return None
    return value_at(plan, RATE, 0, replica, plan.step, external=external)


def _overrides(session: Session, job: Job) -> list[dict[str, Any]]:
    rows = session.scalars(
        select(OverrideRow)
        .where(OverrideRow.job_id == job.id)
        .order_by(OverrideRow.id.desc())
        .limit(_MAX_OVERRIDES)
    )
    return [
        {
            "id": row.id,
            "what": sentences.override_text(row.body),
            "state": row.state,
            "round": "–" if row.applied_round is None else row.applied_round,
            "until": _until(row),
            "who": row.created_by,
            "why": row.body.get("reason", ""),
            "refusal": row.refusal,
            "at": sentences.time_text(row.created_s),
        }
        for row in rows
    ]


def _until(row: OverrideRow) -> str:
    rounds = row.body.get("expires_after_rounds")
    if rounds is None:
        return "removed"
    return f"{rounds} rounds" if row.applied_round is None else f"round {row.applied_round + rounds}"


def _events(session: Session, job: Job, now_s: float) -> list[dict[str, Any]]:
    rows = session.scalars(
        select(Event)
        .where(and_(Event.job_id == job.id, Event.type.not_in(sentences.HIDDEN)))
        .order_by(Event.id.desc())
        .limit(_MAX_EVENTS)
    )
    return [
        {
            "type": row.type,
            "text": sentences.sentence(row.type, row.data),
            "at": sentences.time_text(row.at_s),
            "ago": sentences.ago_text(row.at_s, now_s),
            "at_s": row.at_s,
            "tone": _tone(row),
        }
        for row in rows
    ]


def _tone(event: Event) -> str:
    if event.type == "state" and event.data.get("state") in list(State):
        return TONES[State(event.data["state"])]
    tones = {
        "rollback": "bad",
        "quarantine": "warn",
        "retry": "warn",
        "note": "warn",
        "resize": "warn",
        "recovery": "good",
        "override": "done",
    }
    return tones.get(event.type, "quiet")
