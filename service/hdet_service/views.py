"""A run as the API shows it: its schedule, its replicas, its history. Reads only."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from hdet_ray.core.codec import HParamKey, to_json
from hdet_ray.core.plan import RATE, Plan, value_at
from hdet_ray.core.state import ScheduleState
from hdet_service.exchange import Standing
from hdet_service.override_rows import as_json, in_force
from hdet_service.problems import Conflict
from hdet_service.run_rows import line_of, read_standing, require_job
from hdet_service.steering import find_override
from hdet_service.store.database import Store
from hdet_service.store.models import Job, LedgerStart, OverrideRow, Round


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryPage:
    """Some of a ledger's lines, as they were written."""

    start: dict[str, Any] | None
    """The ledger's first line; None before a worker has opened the run."""
    lines: tuple[str, ...]
    next_round: int | None
    """Where the next page starts; None: this was the last one."""


class Views:
    """What is read of runs.

    Args:
        store: The database.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    async def schedule(self, job_id: str) -> dict[str, Any]:
        """The schedule as JSON.

        Raises:
            NotFound: no such job.
            Conflict: no worker has opened the run yet.
        """

        def read(session: Session) -> dict[str, Any]:
            job = require_job(session, job_id)
            rows = session.scalars(
                select(OverrideRow).where(OverrideRow.job_id == job_id).order_by(OverrideRow.id)
            ).all()
            return {
                **schedule_json(_standing_of(job)),
                "attempt": job.attempt,
                "overrides": in_force(rows),
                "revision": job.revision,
            }

        return await self._store.read(read)

    async def replicas(self, job_id: str) -> list[dict[str, Any]]:
        """Each replica's team and values in the running round, and what it told of the last one.

        Raises:
            NotFound: no such job.
        """

        def read(session: Session) -> list[dict[str, Any]]:
            job = require_job(session, job_id)
            standing = read_standing(job)
            if standing is None:
                return []
            text = line_of(session, job_id, standing.round - 1)
            reports = json.loads(text)["report"]["replicas"] if text else []
            return [
                {**replica, "report": reports[r] if r < len(reports) else None}
                for r, replica in enumerate(replicas_json(standing.plan))
            ]

        return await self._store.read(read)

    async def override(self, job_id: str, override_id: str) -> dict[str, Any]:
        """An override as JSON.

        Raises:
            NotFound: no such job or override.
        """
        return await self._store.read(lambda session: as_json(find_override(session, job_id, override_id)))

    async def history(
        self, job_id: str, *, from_round: int | None = None, limit: int, all_attempts: bool = False
    ) -> HistoryPage:
        """A page of the ledger, oldest round first.

        Args:
            job_id: Whose.
            from_round: The first round; None: the one that the ledger starts with, since older ones are
                summaries.
            limit: Rounds at most.
            all_attempts: Rounds that a newer attempt went back before, too.

        Raises:
            NotFound: no such job.
        """

        def read(session: Session) -> HistoryPage:
            require_job(session, job_id)
            start = session.get(LedgerStart, job_id)
            first = from_round
            if first is None:
                first = 0 if start is None else start.round
            query = select(Round.round, Round.item).where(Round.job_id == job_id, Round.round >= first)
            if not all_attempts:
                query = query.where(Round.is_abandoned.is_(False))
            # A round that several attempts trained is never cut in two by a page.
            query = query.where(Round.round < first + limit).order_by(Round.round, Round.attempt)
            rows = session.execute(query).all()
            later = session.scalar(
                select(Round.round)
                .where(Round.job_id == job_id, Round.round >= first + limit)
                .where(Round.is_abandoned.in_([False, all_attempts]))
                .order_by(Round.round)
                .limit(1)
            )
            return HistoryPage(
                start=None if start is None else start.header,
                lines=tuple(row.item for row in rows),
                next_round=later,
            )

        return await self._store.read(read)


def schedule_json(standing: Standing) -> dict[str, Any]:
    """The part of ``/schedule`` that the run's state and plan say."""
    state, plan, config = standing.state, standing.plan, standing.state.config
    return {
        "phase": plan.phase,
        "round": state.round,
        "step": state.step,
        "total_steps": config.total_steps,
        "controller": type(config.controller).__name__.lower(),
        "peak": by_hparam(plan.peak),
        "base": by_hparam(plan.base),
        "replicas": replicas_json(plan),
        "points": _points(state),
        "search": _search(state),
        "velocity": by_hparam(state.velocity),
        "bounds": _common_bounds(state),
        "group_bounds": to_json(dict(state.bounds)),
        "frozen": list(state.frozen),
        "one_cycle": _one_cycle(state),
    }


def replicas_json(plan: Plan) -> list[dict[str, Any]]:
    """Each replica's team, and its values at the round's first step."""
    return [
        {"replica": replica, "team": team, "values": by_hparam(_values(plan, replica))}
        for replica, team in enumerate(plan.teams)
    ]


def by_hparam(values: Mapping[HParamKey, float]) -> dict[str, dict[str, float | None]]:
    """``{"lr": {"0": x}}``; what is not finite stands as None."""
    out: dict[str, dict[str, float | None]] = {}
    for (name, group), value in values.items():
        out.setdefault(name, {})[str(group)] = value if math.isfinite(value) else None
    return out


def _values(plan: Plan, replica: int) -> dict[HParamKey, float]:
    if plan.shape == "external":  # the user's own scheduler says its rate in the run only
        return {key: plan.base[key] * multipliers[replica] for key, multipliers in plan.values.items()}
    return {(name, group): value_at(plan, name, group, replica, plan.step) for name, group in plan.values}


def _points(state: ScheduleState) -> list[dict[str, Any]]:
    points = []
    for point in state.search.points if state.search is not None else ():
        rate = state.config.max_lr[0] * state.ratios[0] * math.exp(point.c)
        told: dict[str, Any] = {
            "round": point.round,
            "phase": point.phase,
            "value": rate,
            "loss": point.loss,
            "dead": point.is_dead,
        }
        if point.loss is None or not math.isfinite(point.loss):
            told |= {"loss": None, "nonfinite": True}
        points.append(told)
    return points


def _search(state: ScheduleState) -> dict[str, Any] | None:
    search = state.search
    if search is None:
        return None
    return {
        "stage": search.stage,
        "confirmed": search.is_confirmed,
        "suspect": search.is_suspect,
        "steps": state.search_steps,
    }


def _common_bounds(state: ScheduleState) -> dict[str, list[float]]:
    """Where every group may be set; where groups have nothing in common, what any of them may be."""
    bounds: dict[str, list[float]] = {}
    for name in dict.fromkeys(name for name, _ in state.bounds):
        lows, highs = zip(*(state.bounds[key] for key in state.keys_of(name, None)), strict=True)
        low, high = max(lows), min(highs)
        bounds[name] = [low, high] if low < high else [min(lows), max(highs)]
    return bounds


def _one_cycle(state: ScheduleState) -> dict[str, dict[str, float | None]]:
    """What the user's own one-cycle, without any of this, would do at this step."""
    cycle = state.config.cycle
    if cycle is None:
        return {}
    return by_hparam({(RATE, g): cycle.lr_at(g, state.step) for g in range(len(state.config.max_lr))})


def _standing_of(job: Job) -> Standing:
    standing = read_standing(job)
    if standing is None:
        raise Conflict(
            f"job {job.id} is {job.state} and no worker has opened its run yet, so it has no schedule; "
            "wait for RUNNING"
        )
    return standing
