"""Runs without training: reports made up from a formula, decided on by `core` as in a real run.

What the edge would measure is computed from the plan alone, so a test says what replicas see at a rate
and reads off what `core` makes of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hdet_ray.config import Auto, Controller
from hdet_ray.core.codec import digest
from hdet_ray.core.decide import decide, start
from hdet_ray.core.one_cycle import OneCycle
from hdet_ray.core.plan import RATE, Plan
from hdet_ray.core.report import ReplicaReport, RoundReport
from hdet_ray.core.state import Explored, ScheduleConfig, ScheduleState

LossOfC = Callable[[float], float]
"""A loss as a function of c, the log of a rate relative to ``max_lr``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """One round: the state and plan before it, its report, and the state and plan after."""

    state: ScheduleState
    plan: Plan
    report: RoundReport
    next_state: ScheduleState
    next_plan: Plan


def make_config(
    controller: Controller | None = None,
    *,
    total_steps: int = 1200,
    max_lr: Sequence[float] = (1e-3,),
    has_probe: bool = True,
    explored: Sequence[Explored] = (),
    bounds: Mapping[tuple[str, int], tuple[float, float]] | None = None,
    **settings: Any,
) -> ScheduleConfig:
    """A run's config with torch's own one-cycle for a base."""
    rates = tuple(max_lr)
    cycle = OneCycle(
        total_steps=total_steps,
        max_lr=rates,
        base_momentum=(0.85,) * len(rates),
        max_momentum=(0.95,) * len(rates),
    )
    return ScheduleConfig(
        controller=controller or Auto(),
        total_steps=total_steps,
        max_lr=rates,
        floor_lr=tuple(cycle.min_lr(group) for group in range(len(rates))),
        cycle=cycle,
        has_probe=has_probe,
        explored=tuple(explored),
        bounds=bounds or {},
        **settings,
    )


def weight_decay(group: int = 0, **settings: Any) -> Explored:
    """A logarithmic hyperparameter to explore."""
    given: dict[str, Any] = {"scale": "log", "low": 1e-6, "high": 1.0, "base": 0.01, **settings}
    return Explored(name="weight_decay", group=group, **given)


def dropout(**settings: Any) -> Explored:
    """A linear hyperparameter to explore."""
    given: dict[str, Any] = {"scale": "linear", "low": 0.0, "high": 0.9, "base": 0.2, **settings}
    return Explored(name="dropout", group=0, **given)


def make_replica(loss: float = 1.0, **changes: Any) -> ReplicaReport:
    """A replica whose loss stayed at one level; healthy unless changed."""
    told: dict[str, Any] = {
        "loss": loss,
        "tail_loss": loss,
        "start_loss": loss,
        "last_loss": loss,
        "noise": 0.05,
        "is_finite": math.isfinite(loss),
        **changes,
    }
    return ReplicaReport(**told)


def make_report(plan: Plan, replicas: Sequence[ReplicaReport] | None = None, **changes: Any) -> RoundReport:
    """The report of a whole round; of healthy replicas with equal losses unless given."""
    told: dict[str, Any] = {
        "round": plan.round,
        "calls": plan.num_steps,
        "steps": plan.num_steps,
        "plan_digest": digest(plan),
        "replicas": tuple(
            replicas or [make_replica(probe_loss=1.0 if plan.probe else None)] * plan.num_replicas
        ),
        "untrained_loss": 5.0 if plan.untrained_probe else None,
        **changes,
    }
    return RoundReport(**told)


def c_of(plan: Plan, replica: int) -> float:
    """The log of a replica's peak rate relative to the first group's ``max_lr``."""
    return math.log(plan.scale[RATE, 0] * plan.values[RATE, 0][replica])


def measured(plan: Plan, loss_of: LossOfC, *, untrained_loss: float = 5.0, **changes: Any) -> RoundReport:
    """The report of a round in which each replica sees the loss of its own rate.

    Without a probe the loss stands in the window's last quarter only: its mean tells nothing.
    """
    losses = [loss_of(c_of(plan, r)) for r in range(plan.num_replicas)]
    if plan.probe is None:
        replicas = [make_replica(2.0, tail_loss=loss, is_finite=math.isfinite(loss)) for loss in losses]
    else:
        replicas = [make_replica(2.0, probe_loss=loss, is_finite=math.isfinite(loss)) for loss in losses]
    asks = plan.untrained_probe is not None or (plan.is_search and plan.probe is None)
    untrained = untrained_loss if asks else None
    return make_report(plan, replicas, **{"untrained_loss": untrained, **changes})


def rounds(
    config: ScheduleConfig,
    num_replicas: int,
    report_of: Callable[[Plan], RoundReport] = make_report,
    *,
    max_rounds: int = 10_000,
) -> Iterator[Decided]:
    """Run to the end of the schedule, to a failure, or for a number of rounds."""
    state, plan = start(config, num_replicas)
    for _ in range(max_rounds):
        if plan.num_steps == 0:
            return
        report = report_of(plan)
        next_state, next_plan = decide(state, report)
        yield Decided(state=state, plan=plan, report=report, next_state=next_state, next_plan=next_plan)
        state, plan = next_state, next_plan


def search_of(
    config: ScheduleConfig, num_replicas: int, loss_of: LossOfC, *, untrained_loss: float = 5.0
) -> list[Decided]:
    """The rounds of a run's search."""
    found = []
    for decided in rounds(
        config, num_replicas, lambda p: measured(p, loss_of, untrained_loss=untrained_loss)
    ):
        if not decided.plan.is_search:
            break
        found.append(decided)
    return found


def after(config: ScheduleConfig, num_replicas: int, num_rounds: int) -> tuple[ScheduleState, Plan]:
    """State and plan after some uneventful rounds."""
    state, plan = start(config, num_replicas)
    for _ in range(num_rounds):
        state, plan = decide(state, make_report(plan))
    return state, plan
