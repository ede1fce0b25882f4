"""Runs without processes, written to a store the way that exchanges leave them.

`core` decides, a formula stands in for the losses, and each round is one transaction with its counters.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy.orm import Session

from hdet_ray.config import Auto, Controller
from hdet_ray.core.codec import digest, to_json
from hdet_ray.core.decide import decide, judge_report, start
from hdet_ray.core.health import Verdict
from hdet_ray.core.one_cycle import OneCycle
from hdet_ray.core.plan import RATE, Plan
from hdet_ray.core.planning import plan_for
from hdet_ray.core.replay import item_line
from hdet_ray.core.report import ReplicaReport, RoundReport
from hdet_ray.core.state import Explored, ScheduleConfig, ScheduleState, state_to_json
from hdet_service.metrics import RunView, count_round
from hdet_service.metrics.runs import ViewKey
from hdet_service.run_events import record_restart
from hdet_service.states import State
from hdet_service.store.database import Store
from hdet_service.store.models import Job, LedgerStart, Round, Transition
from tests.unit.runs import make_replica

BEST_RATE = 0.03

Loss = Callable[[float, float, int], float]
"""Loss from the rate, the share of the run that is over, and the replica."""


def bowl(rate: float, progress: float, replica: int) -> float:
    """A parabola in the log rate around `BEST_RATE`; far above it there is no loss any more."""
    x = math.log(rate / BEST_RATE)
    if x > 2.5:
        return math.nan
    return 2.2 + 1.4 * math.exp(-6 * progress) + 0.035 * x * x + 0.002 * replica


def config_of(
    controller: Controller, *, total_steps: int = 900, max_lr: float = BEST_RATE / 30, groups: int = 1
) -> ScheduleConfig:
    """What a loop with a probe is started with."""
    rates = tuple(max_lr * (1 + group) for group in range(groups))
    cycle = OneCycle(
        total_steps=total_steps,
        max_lr=rates,
        base_momentum=(0.85,) * groups,
        max_momentum=(0.95,) * groups,
    )
    explored = (Explored(name="weight_decay", group=0, scale="log", low=1e-4, high=1.0, base=0.01),)
    return ScheduleConfig(
        controller=controller,
        total_steps=total_steps,
        max_lr=rates,
        floor_lr=tuple(cycle.min_lr(g) for g in range(groups)),
        cycle=cycle,
        has_probe=True,
        explored=explored if controller.alpha > 0 else (),
    )


class RecordedRun:
    """A job and its run in a store; `advance` moves it on by rounds."""

    def __init__(
        self,
        store: Store,
        job_id: str,
        *,
        name: str = "tiny",
        controller: Controller | None = None,
        num_replicas: int = 4,
        loss_of: Loss = bowl,
        at_s: float = 1_800_000_000.0,
        owner: str = "ada",
        facts: Mapping[str, float] | None = None,
        **config: Any,
    ) -> None:
        self.store, self.id, self.loss_of = store, job_id, loss_of
        self.num_replicas = num_replicas
        self.attempt, self.now = 1, at_s
        self.facts = dict(facts or {})
        self.state, self.plan = start(config_of(controller or Auto(), **config), num_replicas)
        self.states: list[tuple[ScheduleState, Plan]] = [(self.state, self.plan)]
        self._noise = random.Random(0)
        store.write_sync(lambda session: self._create(session, name, owner))

    def _create(self, session: Session, name: str, owner: str) -> None:
        session.add(
            Job(
                id=self.id,
                name=name,
                owner=owner,
                spec={
                    "name": name,
                    "entrypoint": "byte_lm",
                    "replicas": {"min": self.num_replicas, "max": self.num_replicas},
                    "max_failures": 3,
                },
                state=State.RUNNING,
                reason="Running",
                created_s=self.now,
                updated_s=self.now,
                started_s=self.now,
                submission=1,
                attempt=1,
                total_steps=self.state.config.total_steps,
                replicas_present=self.num_replicas,
                schedule=state_to_json(self.state),
                plan=to_json(self.plan),
                plan_digest=digest(self.plan),
            )
        )
        session.flush()
        session.add(LedgerStart(job_id=self.id, round=0, header=state_to_json(self.state)))
        session.add(Transition(job_id=self.id, state="RUNNING", reason="Running", at_s=self.now))

    def advance(self, rounds: int, **changes: Any) -> list[RunView]:
        """Report and decide this many rounds; ``changes`` go into each report."""
        return [self._round(changes) for _ in range(rounds) if self.plan.num_steps]

    def finish(self) -> None:
        """To the schedule's end."""
        while self.plan.num_steps:
            self.advance(1)

    def restart(self, at_round: int, num_replicas: int | None = None) -> None:
        """A new attempt goes back to the state before a round, with so many replicas."""
        self.attempt += 1
        self.state, self.plan = self.states[at_round]
        del self.states[at_round + 1 :]
        if num_replicas is not None:
            self.plan = plan_for(self.state, num_replicas)
            self.states[at_round] = (self.state, self.plan)
        self.store.write_sync(self._rewind)

    def set_job(self, **values: Any) -> None:
        """Change the job's row."""

        def write(session: Session) -> None:
            for name, value in values.items():
                setattr(session.get_one(Job, self.id), name, value)

        self.store.write_sync(write)

    def _round(self, changes: Mapping[str, Any]) -> RunView:
        finished, before = self.plan, self.state
        report = replace(self._report(finished), **changes)
        self.state, self.plan = decide(before, report)
        verdict = judge_report(before, finished, report)
        self.now += report.facts["wall_s"]
        self.states.append((self.state, self.plan))

        def write(session: Session) -> None:
            job = session.get_one(Job, self.id)
            restart = count_round(
                session,
                job,
                finished=finished,
                report=report,
                verdict=verdict,
                after=self.state,
                at_s=self.now,
            )
            if restart is not None:
                record_restart(
                    session, self.id, self.attempt, restart=restart, finished=finished, at_s=self.now
                )
            line = item_line(self.attempt, report, self.plan)
            session.merge(
                Round(job_id=self.id, attempt=self.attempt, round=report.round, item=line, at_s=self.now)
            )
            self._stand(job, before)
            job.last_report_s = job.updated_s = self.now
            job.steps_per_s = report.steps / report.facts["wall_s"]

        self.store.write_sync(write)
        return self.view(report, verdict)

    def view(self, report: RoundReport, verdict: Verdict | None) -> RunView:
        """What is shown of the run as it stands."""
        key = ViewKey(self.attempt, self.state.round, digest(self.plan))
        return RunView(key=key, state=self.state, plan=self.plan, report=report, verdict=verdict)

    def _rewind(self, session: Session) -> None:
        job = session.get_one(Job, self.id)
        for row in session.query(Round).where(Round.job_id == self.id, Round.round >= self.state.round):
            row.is_abandoned = True
        self._stand(job, None)

    def _stand(self, job: Job, before: ScheduleState | None) -> None:
        job.attempt, job.round, job.step = self.attempt, self.state.round, self.state.step
        job.schedule, job.plan = state_to_json(self.state), to_json(self.plan)
        job.schedule_before = None if before is None else state_to_json(before)
        job.plan_digest = digest(self.plan)

    def _report(self, plan: Plan) -> RoundReport:
        replicas = tuple(self._replica(plan, r) for r in range(plan.num_replicas))
        facts = {"wall_s": plan.num_steps * 0.02, "sync_s": 0.004, "sync_bytes": 0.0} | self.facts
        if plan.end == "average":
            facts |= {"sync_bytes": 4096.0, "param_divergence_ratio": 0.01 + 0.001 * plan.round}
        return RoundReport(
            round=plan.round,
            calls=plan.num_steps,
            steps=plan.num_steps,
            plan_digest=digest(plan),
            replicas=replicas,
            untrained_loss=5.55 if plan.untrained_probe else None,
            facts=facts,
        )

    def _replica(self, plan: Plan, replica: int) -> ReplicaReport:
        rate = plan.peak[RATE, 0] * plan.values[RATE, 0][replica]
        progress = 0.0 if plan.is_search else (plan.step - plan.search_steps) / plan.total_steps
        probe_loss = self.loss_of(rate, progress, replica)
        loss = probe_loss + self._noise.gauss(0.05, 0.02)
        return make_replica(loss, probe_loss=probe_loss if plan.probe else None)


def stored_lines(store: Store, job_id: str) -> list[dict[str, Any]]:
    """The stored rounds of a job, by attempt and round."""
    rows = store.read_sync(
        lambda s: s.query(Round.item).where(Round.job_id == job_id).order_by(Round.attempt, Round.round).all()
    )
    return [json.loads(item) for (item,) in rows]
