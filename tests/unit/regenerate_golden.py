"""Golden trajectories: what `core` decided once, round by round, kept as data.

`python -m tests.unit.regenerate_golden` writes them anew; a change in them is a change of the algorithm
and is reviewed as one. `test_golden.py` compares exactly.
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from hdet_ray.config import Auto, Controller, Fixed, Paper
from hdet_ray.core.codec import to_json
from hdet_ray.core.plan import Plan, value_at
from hdet_ray.core.report import RoundReport
from hdet_ray.core.state import ScheduleConfig
from tests.unit.runs import (
    LossOfC,
    c_of,
    make_config,
    make_replica,
    make_report,
    measured,
    rounds,
    weight_decay,
)

FOLDER = Path(__file__).with_name("golden")
NUM_REPLICAS = 4
TOTAL_STEPS = 900

CONTROLLERS: dict[str, Controller] = {
    "auto": Auto(alpha=1 / 9, sync_every=60),
    "paper": Paper(sync_every=30, warmup_steps=100),
    "fixed": Fixed(sync_every=60, gradient_sync="local"),
}


def golden_config(name: str) -> ScheduleConfig:
    """Two groups with their own rates, started thirty times too low, and a weight decay beside."""
    return make_config(
        CONTROLLERS[name], total_steps=TOTAL_STEPS, max_lr=(1e-3, 4e-3), explored=[weight_decay()], seed=5
    )


def trajectory(name: str) -> list[dict[str, Any]]:
    """One entry a round: what the plan said, and what the state held after it."""
    return [
        {
            "round": d.plan.round,
            "phase": d.plan.phase,
            "step": d.plan.step,
            "num_steps": d.plan.num_steps,
            "teams": to_json(d.plan.teams),
            "base": to_json(d.plan.base),
            "peak": to_json(d.plan.peak),
            "values": to_json(d.plan.values),
            "last_rates": [
                value_at(d.plan, "lr", group, NUM_REPLICAS - 1, d.plan.step + d.plan.num_steps - 1)
                for group in range(2)
            ],
            "log_scale": d.next_state.log_scale,
            "rates": to_json(d.next_state.rates),
            "explored": to_json(d.next_state.explored),
            "velocity": to_json(d.next_state.velocity),
            "rollbacks": d.next_state.rollbacks,
            "notes": to_json(d.next_plan.notes),
        }
        for d in rounds(golden_config(name), NUM_REPLICAS, _report)
    ]


def read(name: str) -> list[dict[str, Any]]:
    """The trajectory as it was written."""
    kept: list[dict[str, Any]] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return kept


def write(name: str) -> None:
    """Write one trajectory."""
    FOLDER.mkdir(exist_ok=True)
    text = json.dumps(trajectory(name), indent=1, allow_nan=False)
    (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def _report(plan: Plan) -> RoundReport:
    if plan.is_search:
        return measured(plan, _bowl(math.log(30)), untrained_loss=99.0)
    chance = random.Random(plan.round)
    if plan.round == 8:
        return make_report(plan, [make_replica(math.nan)] * plan.num_replicas)  # rolled back
    losses = [2 + 0.1 * (c_of(plan, r) - 1) ** 2 + chance.gauss(0, 0.02) for r in range(plan.num_replicas)]
    replicas = [make_replica(loss, probe_loss=loss + 0.5) for loss in losses]
    if plan.round == 10:
        replicas[2] = make_replica(
            math.nan, is_finite=plan.is_one_team
        )  # in one team it would be all of theirs
    return make_report(plan, replicas)


def _bowl(best: float) -> LossOfC:
    return lambda c: math.nan if c > best + 2 else 2 + 0.1 * (c - best) ** 2


def main() -> None:
    """Write all of them."""
    for name in CONTROLLERS:
        write(name)


if __name__ == "__main__":
    main()
