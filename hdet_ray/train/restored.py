"""What a restored replica runs with: exactly what the schedule says for it.

A checkpoint holds the writing rank's numbers. Whoever restores it, at whatever size, must have its own: the
peer projects' wrong rates after a resize are all found here, before the first step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from hdet_ray.core.plan import MOMENTUM, RATE, value_at
from hdet_ray.exceptions import CheckpointError
from hdet_ray.optim.stepping import ReplicaScheduler


def require_planned_values(scheduler: ReplicaScheduler) -> None:
    """Check rates, cycled momentum and further hyperparameters of this replica against its plan.

    Raises:
        CheckpointError: one differs; names it, its group, both values, the replica and the step.
    """
    if not scheduler.plan.num_steps:
        return  # the run is over
    for name, group, restored, planned in _values(scheduler):
        if not math.isclose(restored, planned, rel_tol=1e-6):  # a rate may be a float32 tensor
            raise CheckpointError(
                f"group {group} was restored with {name}={restored}, the schedule says {planned} for "
                f"replica {scheduler.collective.replica} at step {scheduler.state.step}; let nothing but the "
                "scheduler set it"
            )


def _values(scheduler: ReplicaScheduler) -> Iterator[tuple[str, int, float, float]]:
    plan, replica, step = scheduler.plan, scheduler.collective.replica, scheduler.state.step
    for index, group in enumerate(scheduler.optimizer.param_groups):
        if plan.shape != "external":  # the base scheduler's own shape, which the plan doesn't know
            yield "lr", index, float(group["lr"]), value_at(plan, RATE, index, replica, step)
        if plan.cycle is not None and plan.cycle.cycle_momentum:
            momentum = group["betas"][0] if "betas" in group else group["momentum"]
            yield "momentum", index, float(momentum), value_at(plan, MOMENTUM, index, replica, step)
    for hp in scheduler.hyperparameters:
        yield hp.name, hp.group, hp.get(), value_at(plan, hp.name, hp.group, replica, step)
