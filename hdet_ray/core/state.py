"""The state: everything learned, the same on every replica, at any world size.

Nothing in it is scaled by a rank or by N, so a checkpoint loads anywhere: the plan is computed from
the state and the number of replicas that there are now.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from hdet_ray.config import (
    Auto,
    Fixed,
    Paper,
    Thresholds,
    check_alpha,
    check_follower,
    check_positive,
    resolve_sync_every,
)
from hdet_ray.core.codec import HParamKey, from_json, to_json
from hdet_ray.core.one_cycle import OneCycle
from hdet_ray.core.overrides import OverrideRecord
from hdet_ray.core.plan import Failure
from hdet_ray.core.search import Search
from hdet_ray.exceptions import CheckpointError, ConfigError, LedgerError

STATE_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Explored:
    """One more hyperparameter of one group that fans out during training (docs: any scalar).

    It is moved by eqs. 4-9 without the decay, except under `Fixed`, which moves nothing.
    """

    name: str
    group: int
    scale: Literal["log", "linear"]
    low: float
    high: float
    base: float
    alpha: float = 1 / 9
    sigma: float = 0.1
    step_size: float = 0.5
    momentum: float = 0.9

    @property
    def key(self) -> HParamKey:
        """Name and group."""
        return self.name, self.group

    def __post_init__(self) -> None:
        where = f"{self.name} of group {self.group}"
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ConfigError(f"bounds ({self.low}, {self.high}) of {where} must be finite, low below high")
        if self.scale == "log" and self.low <= 0:
            raise ConfigError(f"low={self.low} of {where}: a logarithmic scale needs a lower bound above 0")
        if self.base == 0:
            raise ConfigError(f"base=0 of {where} can't be spread by a factor; start from a value above 0")
        if not self.low <= self.base <= self.high:
            raise ConfigError(
                f"base={self.base} of {where} lies outside its bounds ({self.low}, {self.high})"
            )
        check_alpha(self.alpha)
        check_follower(self.sigma, self.step_size, self.momentum)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleConfig:
    """What a run was started with."""

    controller: Auto | Paper | Fixed
    total_steps: int
    max_lr: tuple[float, ...]
    """Each parameter group's rate that ``exp(c)`` multiplies."""
    floor_lr: tuple[float, ...]
    """Where the paper's decay ends."""
    cycle: OneCycle | None = None
    """``None``: the base is a scheduler of the user's own."""
    bounds: Mapping[HParamKey, tuple[float, ...]] = field(default_factory=dict)
    """Bounds of the rates, low and high."""
    explored: tuple[Explored, ...] = ()
    has_probe: bool = False
    probe_samples: int = 64
    max_rollbacks: int = 3
    thresholds: Thresholds = field(default_factory=Thresholds)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.total_steps < 1:
            raise ConfigError(f"total_steps={self.total_steps} must be at least 1")
        resolve_sync_every(self.controller.sync_every, self.total_steps)
        for group, rate in enumerate(self.max_lr):
            check_positive(f"max_lr of group {group}", rate)
            low, high = self.rate_bounds(group)
            if not (math.isfinite(low) and math.isfinite(high) and 0 < low < high):
                raise ConfigError(f"bounds ({low}, {high}) of lr must be finite and above 0, low below high")
            if not low <= rate <= high:
                raise ConfigError(
                    f"max_lr={rate} of group {group} lies outside bounds['lr']=({low}, {high}); widen them"
                )
        if self.probe_samples < 1:
            raise ConfigError(
                f"probe_samples={self.probe_samples} must be at least 1: the samples of one probe call"
            )
        if self.max_rollbacks < 0:
            raise ConfigError(f"max_rollbacks={self.max_rollbacks} must be at least 0")
        if isinstance(self.controller, Paper) and self.warmup_steps > self.total_steps:
            raise ConfigError(
                f"warmup_steps={self.warmup_steps} is longer than the run (total_steps={self.total_steps})"
            )
        keys = [e.key for e in self.explored]
        for key in keys:
            if keys.count(key) > 1:
                raise ConfigError(f"{key[0]} of group {key[1]} is explored twice; name it once")

    @property
    def sync_every(self) -> int:
        """T, in steps."""
        return resolve_sync_every(self.controller.sync_every, self.total_steps)

    @property
    def warmup_steps(self) -> int:
        """Steps before the paper's controller acts (S_warm)."""
        if isinstance(self.controller, Paper) and self.controller.warmup_steps is not None:
            return self.controller.warmup_steps
        return int((self.cycle.pct_start if self.cycle else 0.3) * self.total_steps)

    def rate_bounds(self, group: int) -> tuple[float, float]:
        """Bounds of a group's peak rate; under `Paper` wide enough for its decay to reach the floor."""
        rate = self.max_lr[group]
        low, high = self.bounds.get(("lr", group), (rate * 1e-4, rate * 1e4))
        if ("lr", group) not in self.bounds and isinstance(self.controller, Paper):
            low = min(low, self.floor_lr[group])
        return low, high


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleState:
    """Where a run stands, before the round that is to be planned."""

    config: ScheduleConfig
    round: int = 0
    step: int = 0
    """t: steps of the schedule so far."""
    calls: int = 0
    """Calls of the scheduler's ``step`` so far: t and the skipped ones."""
    log_scale: float = 0.0
    """c: the log of the factor on every group's ``max_lr``."""
    ratios: tuple[float, ...]
    """Each group's own factor beside it, changed by overrides alone."""
    search: Search | None = None
    search_steps: int = 0
    rates: tuple[float, ...] | None = None
    """The paper's base rates; ``None`` before its warm-up has ended."""
    warm_rates: tuple[float, ...] | None = None
    """The base rates when the warm-up ended."""
    explored: Mapping[HParamKey, float] = field(default_factory=dict)
    """Base values of the further hyperparameters."""
    velocity: Mapping[HParamKey, float] = field(default_factory=dict)
    delta: Mapping[HParamKey, float] = field(default_factory=dict)
    """Delta of eq. 6 at the newest update."""
    bounds: Mapping[HParamKey, tuple[float, ...]]
    frozen: tuple[str, ...] = ()
    overrides: tuple[OverrideRecord, ...] = ()
    rollbacks: int = 0
    """Health rollbacks in a row."""
    evidence: tuple[str, ...] = ()
    """What each of those rollbacks saw."""
    notes: tuple[str, ...] = ()
    failure: Failure | None = None

    @property
    def is_searching(self) -> bool:
        """The search has not ended yet."""
        return self.search is not None and self.search.stage != "done"

    @property
    def pins(self) -> dict[HParamKey, float]:
        """Values that overrides hold, the newest winning."""
        pinned: dict[HParamKey, float] = {}
        for record in self.overrides:
            if record.status == "applied" and record.override.op == "set":
                keys = self.keys_of(record.override.hparam, record.override.group)
                pinned.update(dict.fromkeys(keys, record.override.value))
        return pinned

    def keys_of(self, hparam: str, group: int | None) -> list[HParamKey]:
        """The keys that a hyperparameter and a group (``None``: all) stand for."""
        return [key for key in self.bounds if key[0] == hparam and group in (None, key[1])]


def state_to_json(state: ScheduleState) -> dict[str, Any]:
    """The state with its version, as what `json.dumps` takes."""
    return {"version": STATE_VERSION, "state": to_json(state)}


def state_from_json(data: Mapping[str, Any]) -> ScheduleState:
    """The state from its JSON form.

    Raises:
        CheckpointError: written by a newer version, or damaged.
    """
    version = data.get("version")
    if not isinstance(version, int):
        raise CheckpointError(f"the schedule state is damaged: version={version!r} is no number")
    if version > STATE_VERSION:
        raise CheckpointError(
            f"schedule state of version {version}; this release reads up to {STATE_VERSION}: upgrade hdet-ray"
        )
    try:
        state: ScheduleState = from_json(ScheduleState, data.get("state"))
    except LedgerError as error:
        raise CheckpointError(f"the schedule state is damaged: {error}") from error
    return state
