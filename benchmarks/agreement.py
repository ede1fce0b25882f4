"""One configuration both ways, in float64: does the simulation decide what real processes decide?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.processes import RealRun, train_on_ranks
from benchmarks.simulation import new_run, simulate
from benchmarks.stacked import StackedNetwork
from hdet_ray.core.plan import RATE
from hdet_ray.workloads import load_workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How a simulated run and a real one of the same settings compare, round by round."""

    rounds: int
    same_phases: bool
    same_teams: bool
    largest_candidate_difference: float
    """Of all candidates' rates, relative."""
    largest_base_difference: float
    """Of all base values, relative."""
    largest_weight_difference: float
    """Between the final parameters, absolute."""


def compare(workload: str, settings: Any, num_replicas: int) -> Agreement:
    """Run one configuration on real ranks and in the simulation.

    Raises:
        ValueError: the two have a different number of rounds.
    """
    real = train_on_ranks([RealRun(workload=workload, settings=settings, dtype="float64")], num_replicas)[0]
    task = load_workload(workload).Task(settings)
    network = StackedNetwork(task.build_model().double())
    run = new_run("agreement", settings, task, network, num_replicas, dtype=torch.float64)
    simulate([run])
    if len(real.history) != len(run.history):
        raise ValueError(f"{len(real.history)} rounds on processes, {len(run.history)} in the simulation")
    pairs = [(a, b) for (a, _), (b, _) in zip(real.history, run.history, strict=True)]
    key = (RATE, 0)
    return Agreement(
        rounds=len(pairs),
        same_phases=all(a.phase == b.phase and a.num_steps == b.num_steps for a, b in pairs),
        same_teams=all(a.teams == b.teams for a, b in pairs),
        largest_candidate_difference=max(
            _relative(x * a.peak[key], y * b.peak[key])
            for a, b in pairs
            for x, y in zip(a.values[key], b.values[key], strict=True)
        ),
        largest_base_difference=max(_relative(a.base[key], b.base[key]) for a, b in pairs),
        largest_weight_difference=(real.weights - run.weights[0]).abs().max().item(),
    )


def _relative(x: float, y: float) -> float:
    return abs(x - y) / max(abs(x), abs(y))
