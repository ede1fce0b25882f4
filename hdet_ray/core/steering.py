"""Steering: operators' commands, folded into the state at a boundary.

Every override ends in a record that says what became of it: nothing is dropped silently, nothing
applies to some replicas only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from hdet_ray.core.codec import HParamKey
from hdet_ray.core.overrides import Freeze, Override, OverrideRecord, Removal, SetBounds
from hdet_ray.core.plan import RATE
from hdet_ray.core.state import ScheduleState
from hdet_ray.exceptions import OverrideError


def check_override(state: ScheduleState, override: Override) -> None:
    """Refuse an override that can't apply to this run.

    Raises:
        OverrideError: unknown hyperparameter or group, id used before, or a value outside the bounds.
    """
    keys = state.keys_of(override.hparam, override.group)
    if not keys:
        known = ", ".join(sorted({f"{name}[{group}]" for name, group in state.bounds}))
        where = "" if override.group is None else f" of group {override.group}"
        raise OverrideError(f"no hyperparameter {override.hparam!r}{where} in this run; it has {known}")
    if any(r.override.id == override.id for r in state.overrides):
        raise OverrideError(f"override id {override.id!r} was used before; take a new one")
    for key in keys:
        low, high = state.bounds[key]
        value = override.value if override.op == "set" else current_value(state, key) * override.value
        if not low <= value <= high:
            raise OverrideError(
                f"{override.op} {override.value:g} would make {key[0]} of group {key[1]} {value:.4g}, "
                f"outside its bounds ({low:.4g}, {high:.4g}); choose a value inside, or widen them first"
            )


def current_value(state: ScheduleState, key: HParamKey) -> float:
    """The value that bounds and ``set`` mean: the peak for a rate, under `Paper` after warm-up the rate."""
    pinned = state.pins.get(key)
    return own_value(state, key) if pinned is None else _clip(pinned, state.bounds[key])


def own_value(state: ScheduleState, key: HParamKey) -> float:
    """The same without what overrides hold."""
    name, group = key
    if name != RATE:
        return state.explored[key]
    if state.rates is not None:
        return state.rates[group]
    return state.config.max_lr[group] * own_factor(state, group)


def own_factor(state: ScheduleState, group: int) -> float:
    """Factor of a group's rate on the user's own schedule, without what overrides hold."""
    return math.exp(state.log_scale) * state.ratios[group]


def fold_commands(
    state: ScheduleState, commands: Sequence[Override | Removal | Freeze | SetBounds]
) -> ScheduleState:
    """The state with new commands received; overrides become pending records, or refused ones."""
    for command in commands:
        if isinstance(command, Override):
            state = _receive(state, command)
        elif isinstance(command, Removal):
            state = _remove(state, command.id)
        elif isinstance(command, Freeze):
            state = _freeze(state, command)
        else:
            state = _set_bounds(state, command)
    return state


def settle_overrides(state: ScheduleState) -> ScheduleState:
    """Expire and apply what is due for ``state.round``, the round to be planned."""
    if RATE in state.frozen:
        state = end_search(state)
    for record in state.overrides:
        if _has_expired(record, state.round):
            state = _withdraw(state, record, "expired")
    for record in state.overrides:
        if record.status == "pending" and _is_due(record.override, state):
            state = _apply(state, record)
    return state


def end_search(state: ScheduleState, c: float | None = None) -> ScheduleState:
    """The state with its search ended, where one goes on: at ``c``, or at the best so far."""
    if state.search is None or not state.is_searching:
        return state
    result = _clip(state.search.best if c is None else c, rate_c_bounds(state))
    return replace(state, search=replace(state.search, stage="done", result=result), log_scale=result)


def scaled(state: ScheduleState, keys: Sequence[HParamKey], factor: float) -> ScheduleState:
    """The state with some values multiplied; all groups of the rate move together as ``c``."""
    rate_groups = {group for name, group in keys if name == RATE}
    if rate_groups and state.rates is not None:
        rates = tuple(r * factor if g in rate_groups else r for g, r in enumerate(state.rates))
        state = replace(state, rates=rates)
    elif len(rate_groups) == len(state.ratios):
        state = replace(state, log_scale=state.log_scale + math.log(factor))
    elif rate_groups:
        ratios = tuple(r * factor if g in rate_groups else r for g, r in enumerate(state.ratios))
        state = replace(state, ratios=ratios)
    explored = {key: v * factor if key in keys else v for key, v in state.explored.items()}
    return replace(state, explored=explored)


def _receive(state: ScheduleState, override: Override) -> ScheduleState:
    try:
        check_override(state, override)
    except OverrideError as error:
        record = OverrideRecord(override=override, status="refused", reason=str(error))
    else:
        record = OverrideRecord(override=override)
    return replace(state, overrides=(*state.overrides, record))


def _is_due(override: Override, state: ScheduleState) -> bool:
    if override.apply_at_round is not None and override.apply_at_round > state.round:
        return False
    return not (override.op == "scale" and override.hparam == RATE and state.is_searching)


def _apply(state: ScheduleState, record: OverrideRecord) -> ScheduleState:
    override = record.override
    others = replace(state, overrides=tuple(r for r in state.overrides if r is not record))
    try:
        check_override(others, override)  # bounds or values may have moved since it was received
    except OverrideError as error:
        return _with_record(state, record, replace(record, status="refused", reason=str(error)))
    if override.op == "scale":
        state = scaled(state, state.keys_of(override.hparam, override.group), override.value)
    elif override.hparam == RATE:
        state = end_search(state, math.log(override.value / state.config.max_lr[override.group or 0]))
    return _with_record(state, record, replace(record, status="applied", applied_round=state.round))


def _has_expired(record: OverrideRecord, round: int) -> bool:
    rounds = record.override.expires_after_rounds
    if record.status != "applied" or rounds is None or record.applied_round is None:
        return False
    return round >= record.applied_round + rounds


def _remove(state: ScheduleState, override_id: str) -> ScheduleState:
    for record in state.overrides:
        if record.override.id == override_id and record.status in ("pending", "applied"):
            return _withdraw(state, record, "removed")
    return _refused(state, f"no override {override_id!r} is pending or in force: nothing to remove")


def _withdraw(
    state: ScheduleState, record: OverrideRecord, status: Literal["expired", "removed"]
) -> ScheduleState:
    override = record.override
    if record.status == "applied" and override.op == "scale":
        state = clipped(scaled(state, state.keys_of(override.hparam, override.group), 1 / override.value))
    return _with_record(state, record, replace(record, status=status))


def _freeze(state: ScheduleState, command: Freeze) -> ScheduleState:
    if not state.keys_of(command.hparam, None):
        return _refused(state, f"no hyperparameter {command.hparam!r} in this run: nothing to freeze")
    frozen = tuple(name for name in state.frozen if name != command.hparam)
    return replace(state, frozen=(*frozen, command.hparam) if command.is_frozen else frozen)


def _set_bounds(state: ScheduleState, command: SetBounds) -> ScheduleState:
    keys = state.keys_of(command.hparam, None)
    asked = f"bounds ({command.low:g}, {command.high:g}) of {command.hparam!r}"
    if not keys:
        return _refused(state, f"{asked}: no such hyperparameter in this run")
    if command.low <= 0 and (command.hparam == RATE or _is_log(state, command.hparam)):
        return _refused(state, f"{asked}: a logarithmic scale needs a lower bound above 0")
    bounded = replace(state, bounds={**state.bounds, **dict.fromkeys(keys, (command.low, command.high))})
    low, high = rate_c_bounds(bounded)
    if low > high and state.rates is None:
        return _refused(state, f"{asked}: no common factor brings all groups inside; choose wider ones")
    if bounded.search is not None:
        bounded = replace(bounded, search=replace(bounded.search, low=low, high=high))
    return clipped(bounded)


def _is_log(state: ScheduleState, hparam: str) -> bool:
    return any(spec.name == hparam and spec.scale == "log" for spec in state.config.explored)


def _refused(state: ScheduleState, reason: str) -> ScheduleState:
    """Commands other than overrides have no record: people are told, the run goes on."""
    return replace(state, notes=(*state.notes, reason))


def rate_c_bounds(state: ScheduleState) -> tuple[float, float]:
    """The range of c in which every group's peak lies inside its bounds."""
    lows, highs = [], []
    for group, rate in enumerate(state.config.max_lr):
        low, high = state.bounds[(RATE, group)]
        lows.append(math.log(low / (rate * state.ratios[group])))
        highs.append(math.log(high / (rate * state.ratios[group])))
    return max(lows), min(highs)


def clipped(state: ScheduleState) -> ScheduleState:
    """The state with every value inside its bounds."""
    state = replace(state, log_scale=_clip(state.log_scale, rate_c_bounds(state)))
    if state.rates is not None:
        rates = tuple(_clip(r, state.bounds[(RATE, g)]) for g, r in enumerate(state.rates))
        state = replace(state, rates=rates)
    return replace(state, explored={key: _clip(v, state.bounds[key]) for key, v in state.explored.items()})


def _with_record(state: ScheduleState, old: OverrideRecord, new: OverrideRecord) -> ScheduleState:
    return replace(state, overrides=tuple(new if r is old else r for r in state.overrides))


def _clip(value: float, bounds: tuple[float, ...]) -> float:
    return min(max(value, bounds[0]), bounds[1])
