"""The plan of a round, and the one function that says what a replica's value is.

A plan is complete: whoever holds it knows every replica's team and every value at every step of the
round, without the state that it came from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from hdet_ray.core.codec import HParamKey
from hdet_ray.core.one_cycle import OneCycle
from hdet_ray.exceptions import ConfigError

Phase = Literal["scout", "pairs", "train", "fan_out"]
Shape = Literal["one_cycle", "constant", "trial", "external"]
End = Literal["average", "put_back", "keep"]

RATE = "lr"
MOMENTUM = "momentum"

_TRIAL_WARMUP_RATIO = 0.15
_TRIAL_DECAY_RATIO = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSpan:
    """Which probe batches a round's end is measured on: ``k = first .. first + count - 1``."""

    first: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why the run can't go on; every rank raises it."""

    reason: Literal["search", "rollback_limit"]
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What every replica does in the next round."""

    round: int
    phase: Phase
    step: int
    """The schedule's step t at the round's first step."""
    num_steps: int
    """Steps in the round; 0 once the schedule has ended."""
    total_steps: int
    search_steps: int
    """Steps that the search has used: the one-cycle's shape is laid over the others."""
    shape: Shape
    """How rates move within the round."""
    teams: tuple[int | None, ...]
    """Team of each replica: replicas of one team share gradients. ``None``: a team of its own, not scored."""
    base: Mapping[HParamKey, float]
    """Each value at the centre of the spread, at the round's first step."""
    peak: Mapping[HParamKey, float]
    """The rates' ``max_lr * exp(c)``; with a constant shape, the rates themselves."""
    scale: Mapping[HParamKey, float]
    """Factor of each group's rate on the user's own schedule: ``exp(c)`` times the group's ratio."""
    values: Mapping[HParamKey, tuple[float, ...]]
    """Each replica's value relative to the base, one entry per replica."""
    end: End
    probe: ProbeSpan | None = None
    untrained_probe: ProbeSpan | None = None
    """Measure the untrained weights on these, before the first update of the round."""
    cycle: OneCycle | None = None
    overrides: tuple[str, ...] = ()
    """Ids of the overrides in force."""
    notes: tuple[str, ...] = ()
    """What people should be told, once."""
    failure: Failure | None = None

    @property
    def num_replicas(self) -> int:
        """N: how many replicas this plan is for."""
        return len(self.teams)

    @property
    def is_last(self) -> bool:
        """The schedule ends with this round."""
        return self.step + self.num_steps >= self.total_steps

    @property
    def is_search(self) -> bool:
        """A round whose weights are put back."""
        return self.phase in ("scout", "pairs")

    @property
    def is_one_team(self) -> bool:
        """All replicas share gradients."""
        return all(team == 0 for team in self.teams)

    @property
    def keeps_replicas_equal(self) -> bool:
        """Nothing in this round makes one replica's weights differ from another's."""
        return self.is_one_team and all(len(set(v)) == 1 for v in self.values.values())

    def members(self, team: int) -> tuple[int, ...]:
        """The replicas of a team."""
        return tuple(r for r, t in enumerate(self.teams) if t == team)


def value_at(
    plan: Plan, hparam: str, group: int, replica: int, step: int, *, external: float | None = None
) -> float:
    """The value of a hyperparameter on a replica at a step: the only place where it is computed.

    Args:
        plan: The plan of the round.
        hparam: Name of the hyperparameter: ``lr``, ``momentum``, or one that the plan spreads.
        group: Optimizer parameter group.
        replica: ``0 .. num_replicas - 1``.
        step: Step t of the schedule, from ``plan.step`` on.
        external: The base scheduler's own rate at this step, where ``plan.shape`` is ``external``.

    Raises:
        ConfigError: the plan has no such hyperparameter, group or replica.
    """
    key = (hparam, group)
    if key not in plan.values:
        if hparam == MOMENTUM and plan.cycle is not None and plan.cycle.cycle_momentum:
            return _cycled_momentum(plan, group, step)
        raise ConfigError(
            f"no hyperparameter {hparam!r} of group {group} in the plan; it has {sorted(plan.values)}"
        )
    if not 0 <= replica < plan.num_replicas:
        raise ConfigError(f"replica={replica} is none of the plan's {plan.num_replicas}")
    multiplier = plan.values[key][replica]
    if hparam != RATE or plan.shape == "constant":
        return plan.base[key] * multiplier
    return centre_rate(plan, group, step, external=external) * multiplier


def centre_rate(plan: Plan, group: int, step: int, *, external: float | None = None) -> float:
    """A group's rate at the centre of the spread: what the user's schedule says, scaled.

    Args:
        external: The base scheduler's own rate at this step, where ``plan.shape`` is ``external``.
    """
    key = (RATE, group)
    if plan.shape == "trial":
        return plan.peak[key] * trial_ramp(step - plan.step, plan.num_steps)
    if plan.shape == "constant":
        return plan.base[key]
    if plan.shape == "external" or plan.cycle is None:
        if external is None:
            raise ConfigError("the base is a scheduler of the user's own; pass its rate as external=")
        return external * plan.scale[key]
    position, length = step - plan.search_steps, plan.total_steps - plan.search_steps
    return plan.cycle.lr_at(group, position, length) * plan.scale[key]


def rate_columns(plan: Plan, replica: int, first: int, count: int) -> list[list[float]]:
    """A replica's rates at ``count`` steps from ``first`` on, a list for each group: `value_at`, faster.

    Not for a base of the user's own, which is asked step by step.
    """
    groups = range(sum(name == RATE for name, _ in plan.values))
    multipliers = [plan.values[RATE, g][replica] for g in groups]
    if plan.shape == "one_cycle" and plan.cycle is not None:
        position, length = first - plan.search_steps, plan.total_steps - plan.search_steps
        centres = plan.cycle.lr_columns(position, count, length)
        scales = [plan.scale[RATE, g] for g in groups]
        factors = zip(centres, scales, multipliers, strict=True)
        # Factor by factor, as in `value_at`: another order differs in the last bit.
        return [[rate * scale * multiplier for rate in column] for column, scale, multiplier in factors]
    steps = range(first, first + count)
    return [[centre_rate(plan, g, step) * multipliers[g] for step in steps] for g in groups]


def momentum_columns(plan: Plan, first: int, count: int) -> list[list[float]]:
    """The cycled momentum at ``count`` steps from ``first`` on, one list a group; empty if none cycles."""
    if plan.cycle is None or not plan.cycle.cycle_momentum:
        return []
    if plan.shape == "trial":
        return [[momentum] * count for momentum in plan.cycle.max_momentum]
    return plan.cycle.momentum_columns(first - plan.search_steps, count, plan.total_steps - plan.search_steps)


def trial_ramp(j: int, num_steps: int) -> float:
    """Factor of a candidate's rate at step ``j`` of its round: a short warm-up, and a decay to near zero."""
    return min(
        1.0, (j + 1) / (_TRIAL_WARMUP_RATIO * num_steps), (num_steps - j) / (_TRIAL_DECAY_RATIO * num_steps)
    )


def _cycled_momentum(plan: Plan, group: int, step: int) -> float:
    cycle = plan.cycle
    if cycle is None:
        raise ConfigError("momentum cycles only with a one-cycle base")
    if plan.shape == "trial":
        return cycle.max_momentum[group]
    return cycle.momentum_at(group, step - plan.search_steps, plan.total_steps - plan.search_steps)
