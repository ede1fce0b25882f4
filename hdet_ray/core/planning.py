"""From the state and the number of replicas to the plan of the next round.

Nothing is remembered elsewhere, so a resize is planned like any other round.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from hdet_ray.config import Auto, Fixed, Paper
from hdet_ray.core.codec import HParamKey
from hdet_ray.core.designs import balanced_columns
from hdet_ray.core.fan_out import permuted_multipliers
from hdet_ray.core.plan import RATE, Phase, Plan, ProbeSpan, Shape, centre_rate, trial_ramp
from hdet_ray.core.search import Trial, trial
from hdet_ray.core.state import ScheduleConfig, ScheduleState
from hdet_ray.core.steering import current_value, end_search, own_factor


def plan_for(state: ScheduleState, num_replicas: int) -> Plan:
    """The plan of round ``state.round`` for this many replicas.

    Pure, and all that a resize needs: the same state gives each N its own assignments.
    """
    if state.is_searching and num_replicas > 1:
        return _search_plan(state, num_replicas)
    # One replica alone has nobody to compare with: it goes on from the best so far.
    return _training_plan(end_search(state), num_replicas)


def trial_of(state: ScheduleState, num_replicas: int) -> Trial:
    """Who tries what in the search round that this state plans."""
    if state.search is None or not isinstance(state.config.controller, Auto):
        raise TypeError("only a state that is searching has a trial")
    return trial(state.search, state.config.controller, num_replicas)


def probe_calls(samples: int, samples_per_call: int) -> int:
    """Probe calls that cover this many samples."""
    return math.ceil(samples / samples_per_call)


def _search_plan(state: ScheduleState, num_replicas: int) -> Plan:
    config, search, settings = state.config, state.search, state.config.controller
    if search is None or not isinstance(settings, Auto):
        raise TypeError("a search plan needs a search")
    tried = trial_of(state, num_replicas)
    is_scout = search.stage == "scout"
    steps = min(search.scout_steps if is_scout else search.pair_steps, config.total_steps - state.step)
    centre = search.centre if is_scout else (search.start or 0.0)
    factor = math.exp(centre)
    groups = range(len(config.max_lr))
    multipliers = tuple(math.exp(tried.c_of(r) - centre) for r in range(num_replicas))
    peak = {(RATE, g): config.max_lr[g] * (factor * state.ratios[g]) for g in groups}
    spread = {(RATE, g): multipliers for g in groups}
    still = dict.fromkeys(state.explored, (1.0,) * num_replicas)
    return Plan(
        round=state.round,
        phase="scout" if is_scout else "pairs",
        step=state.step,
        num_steps=steps,
        total_steps=config.total_steps,
        search_steps=state.search_steps,
        shape="trial",
        teams=tried.teams,
        base={key: p * trial_ramp(0, max(steps, 1)) for key, p in peak.items()}
        | {key: current_value(state, key) for key in state.explored},
        peak=peak,
        scale={(RATE, g): factor * state.ratios[g] for g in groups},
        values=spread | still,
        end="put_back",
        probe=_search_probe(config, settings, is_scout=is_scout),
        untrained_probe=None
        if search.untrained is not None
        else _search_probe(config, settings, is_scout=is_scout),
        cycle=config.cycle,
        overrides=_overrides_in_force(state),
        notes=state.notes,
        failure=state.failure,
    )


def _search_probe(config: ScheduleConfig, settings: Auto, *, is_scout: bool) -> ProbeSpan | None:
    """Scouts share the first samples, pairs the next ones: what chose a region does not judge the place."""
    if not config.has_probe:
        return None
    scout_calls = probe_calls(settings.scout_samples, config.probe_samples)
    if is_scout:
        return ProbeSpan(first=0, count=scout_calls)
    return ProbeSpan(first=scout_calls, count=probe_calls(settings.pair_samples, config.probe_samples))


def _training_plan(state: ScheduleState, num_replicas: int) -> Plan:
    config, controller = state.config, state.config.controller
    groups = range(len(config.max_lr))
    values = _multipliers(state, num_replicas)
    is_spread = any(len(set(v)) > 1 for v in values.values())
    is_local = not isinstance(controller, Auto) and controller.gradient_sync == "local" and num_replicas > 1
    phase: Phase = "fan_out" if is_spread else "train"
    rates = {(RATE, g): current_value(state, (RATE, g)) for g in groups}
    plan = Plan(
        round=state.round,
        phase=phase,
        step=state.step,
        num_steps=0 if state.failure else _round_steps(state),
        total_steps=config.total_steps,
        search_steps=state.search_steps,
        shape=_shape(state),
        teams=tuple(range(num_replicas)) if is_local else (0,) * num_replicas,
        base={key: current_value(state, key) for key in state.explored} | rates,
        peak=rates,
        scale={(RATE, g): _scale(state, g) for g in groups},
        values=values,
        end="average" if is_spread or is_local else "keep",
        probe=_training_probe(config) if is_spread and state.explored else None,
        cycle=config.cycle,
        overrides=_overrides_in_force(state),
        notes=state.notes,
        failure=state.failure,
    )
    return _with_base_rates(plan, state)


def _shape(state: ScheduleState) -> Shape:
    if state.rates is not None:
        return "constant"
    return "external" if state.config.cycle is None else "one_cycle"


def _scale(state: ScheduleState, group: int) -> float:
    if (RATE, group) in state.pins:
        return current_value(state, (RATE, group)) / state.config.max_lr[group]
    return own_factor(state, group)


def _with_base_rates(plan: Plan, state: ScheduleState) -> Plan:
    """The base rate is what the schedule says at the round's first step; an external base tells its own."""
    if plan.shape != "one_cycle":
        return plan
    rates = {(RATE, g): centre_rate(plan, g, plan.step) for g in range(len(state.config.max_lr))}
    return replace(plan, base={**plan.base, **rates})


def _round_steps(state: ScheduleState) -> int:
    """T, or less where the schedule or the paper's warm-up ends."""
    config = state.config
    left = config.total_steps - state.step
    if isinstance(config.controller, Paper) and state.step < config.warmup_steps:
        left = config.warmup_steps - state.step
    return max(min(config.sync_every, left), 0)


def _training_probe(config: ScheduleConfig) -> ProbeSpan | None:
    """Further hyperparameters are compared on the same samples each round."""
    if not config.has_probe or isinstance(config.controller, Fixed):
        return None
    samples = config.controller.scout_samples if isinstance(config.controller, Auto) else Auto().scout_samples
    return ProbeSpan(first=0, count=probe_calls(samples, config.probe_samples))


def _multipliers(state: ScheduleState, num_replicas: int) -> Mapping[HParamKey, tuple[float, ...]]:
    """Each key's multiplier on each replica; `Paper` gives each group's rate a column, others one to all."""
    config, controller = state.config, state.config.controller
    rate_keys: list[HParamKey] = [(RATE, g) for g in range(len(config.max_lr))]
    blocks = [[key] for key in rate_keys] if isinstance(controller, Paper) else [rate_keys]
    columns: list[tuple[list[HParamKey], float]] = [(block, controller.alpha) for block in blocks]
    columns += [([e.key], e.alpha) for e in config.explored]
    active = [(keys, alpha) for keys, alpha in columns if alpha > 0]
    values: dict[HParamKey, tuple[float, ...]] = {
        key: (1.0,) * num_replicas for keys, _ in columns for key in keys
    }
    if num_replicas == 1 or not active:
        return values
    for (keys, _), multipliers in zip(active, _columns(state, active, num_replicas), strict=True):
        values.update({key: _inside_bounds(state, key, multipliers) for key in keys})
    return values


def _columns(
    state: ScheduleState, active: list[tuple[list[HParamKey], float]], num_replicas: int
) -> list[tuple[float, ...]]:
    """One column of multipliers for each.

    The paper draws permutations of eq. 1's levels independently. Otherwise several columns are balanced
    two-level designs; a single one has nothing to be balanced against and takes eq. 1's levels.
    """
    config = state.config
    is_balanced = not isinstance(config.controller, Paper) and 1 < len(active) < num_replicas
    if not is_balanced:
        return [
            permuted_multipliers(
                num_replicas, alpha, seed=config.seed, round=state.round, purpose=f"{keys[0][0]}/{keys[0][1]}"
            )
            for keys, alpha in active
        ]
    designs = balanced_columns(num_replicas, len(active), seed=config.seed, round=state.round)
    return [
        tuple(1 + alpha * level for level in design)
        for (_, alpha), design in zip(active, designs, strict=True)
    ]


def _inside_bounds(state: ScheduleState, key: HParamKey, multipliers: tuple[float, ...]) -> tuple[float, ...]:
    if key[0] == RATE:
        return multipliers
    base, (low, high) = current_value(state, key), state.bounds[key]
    if base == 0:  # A bound of 0 was reached: no factor leads away from there.
        return (1.0,) * len(multipliers)
    return tuple(m if low <= base * m <= high else min(max(base * m, low), high) / base for m in multipliers)


def _overrides_in_force(state: ScheduleState) -> tuple[str, ...]:
    return tuple(r.override.id for r in state.overrides if r.status == "applied")
