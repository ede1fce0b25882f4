"""Ledgers without training: `core` decides, and a formula stands in for the losses."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from hdet_ray.config import Auto, Controller
from hdet_ray.core.codec import digest
from hdet_ray.core.decide import decide, start
from hdet_ray.core.one_cycle import OneCycle
from hdet_ray.core.plan import Plan
from hdet_ray.core.replay import header_line, item_line
from hdet_ray.core.report import RoundReport
from hdet_ray.core.state import ScheduleConfig
from tests.unit.runs import make_replica

BEST_RATE = 0.03
UNTRAINED_LOSS = 5.55

ReplicaLoss = Callable[[float, float], float]
"""Loss from the rate and the share of the run that is over."""


def bowl(rate: float, progress: float) -> float:
    """A parabola in the log rate around `BEST_RATE`; far above it there is no loss any more."""
    x = math.log(rate / BEST_RATE)
    if x > 2.5:
        return math.nan
    return 2.2 + 1.4 * math.exp(-6 * progress) + 0.035 * x * x


def ledger_lines(
    *,
    controller: Controller | None = None,
    num_replicas: int = 4,
    max_lr: float = BEST_RATE / 30,
    total_steps: int = 900,
    loss_of: ReplicaLoss = bowl,
    num_rounds: int | None = None,
) -> list[str]:
    """The lines of a run's ledger, to its end or to a number of rounds."""
    cycle = OneCycle(
        total_steps=total_steps,
        max_lr=(max_lr,),
        base_momentum=(0.85,),
        max_momentum=(0.95,),
        div_factor=25.0,
    )
    config = ScheduleConfig(
        controller=controller or Auto(),
        total_steps=total_steps,
        max_lr=(max_lr,),
        floor_lr=(cycle.min_lr(0),),
        cycle=cycle,
        has_probe=True,
    )
    state, plan = start(config, num_replicas)
    lines = [header_line(state)]
    noise = random.Random(0)
    while plan.num_steps and (num_rounds is None or len(lines) <= num_rounds):
        report = _report(plan, loss_of, noise)
        state, plan = decide(state, report)
        lines.append(item_line(1, report, plan))
    return lines


def _report(plan: Plan, loss_of: ReplicaLoss, noise: random.Random) -> RoundReport:
    replicas = []
    for r in range(plan.num_replicas):
        rate = plan.peak["lr", 0] * plan.values["lr", 0][r]
        # What a search round trains is put back: the run has not moved on.
        progress = 0.0 if plan.is_search else (plan.step - plan.search_steps) / plan.total_steps
        probe_loss = loss_of(rate, progress)
        loss = probe_loss + noise.gauss(0.05, 0.03)
        replicas.append(make_replica(loss, probe_loss=probe_loss if plan.probe else None))
    return RoundReport(
        round=plan.round,
        calls=plan.num_steps,
        steps=plan.num_steps,
        plan_digest=digest(plan),
        replicas=tuple(replicas),
        untrained_loss=UNTRAINED_LOSS if plan.untrained_probe else None,
        facts={"wall_s": plan.num_steps * 0.01},
    )
