"""What one round's report changes in the state: the search, the paper's rule, or a rollback."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from hdet_ray.config import Auto, Fixed, Paper
from hdet_ray.core.codec import HParamKey
from hdet_ray.core.health import Verdict
from hdet_ray.core.paper import decay_per_round, follow, softmax_weights
from hdet_ray.core.plan import RATE, Failure, Plan, centre_rate
from hdet_ray.core.report import ReplicaReport, RoundReport
from hdet_ray.core.search import Search, Trial, absorb, pool, team_scores
from hdet_ray.core.state import Explored, ScheduleState
from hdet_ray.core.steering import clipped, end_search, own_factor, scaled

AUTO_ROLLBACK_STEP = 0.7
"""How far `Auto` lowers c after a rollback; the other controllers halve the rate."""


def learn(state: ScheduleState, plan: Plan, report: RoundReport, verdict: Verdict) -> ScheduleState:
    """The state after a round of training, before the next is planned."""
    if state.is_searching:
        # The plan was for one replica alone, which can't search: from here on the search is over.
        state = end_search(state)
        rate = _rate(state, state.log_scale)
        note = f"one replica has nobody to be compared with: the search ended at max_lr = {rate:.4g}"
        state = replace(state, notes=(*state.notes, note))
    if verdict.rolls_back:
        return _roll_back(state, report, verdict)
    state = replace(state, rollbacks=0, evidence=())
    healthy = [r for r, weight in enumerate(verdict.weights) if weight > 0]
    state = _follow_explored(state, plan, report, healthy)
    return _follow_rates(state, plan, report, healthy)


def enter_paper(state: ScheduleState, plan: Plan, report: RoundReport) -> ScheduleState:
    """Take over from one-cycle, once the warm-up's steps have passed."""
    config = state.config
    if (
        not isinstance(config.controller, Paper)
        or state.rates is not None
        or state.step < config.warmup_steps
    ):
        return state
    groups = range(len(config.max_lr))
    # Not the plan's factor: a rollback at this boundary, or a pinned value, has changed it.
    own = replace(plan, scale={(RATE, g): own_factor(state, g) for g in groups})
    rates = [centre_rate(own, g, state.step, external=report.external_rates.get((RATE, g))) for g in groups]
    return with_rates(state, rates)


def with_rates(state: ScheduleState, rates: Sequence[float]) -> ScheduleState:
    """The state with the paper's controller in charge of these base rates."""
    state = clipped(replace(state, rates=tuple(rates)))
    return replace(state, warm_rates=state.rates)


def learn_from_trial(state: ScheduleState, tried: Trial, plan: Plan, report: RoundReport) -> ScheduleState:
    """The state after a search round.

    Args:
        tried: Who tried what, as the plan said it: commands may have moved the bounds since.
    """
    search, settings = state.search, state.config.controller
    if search is None or not isinstance(settings, Auto):
        raise TypeError("a search round needs a search")
    if search.untrained is None and report.untrained_loss is not None:
        search = search.with_untrained(report.untrained_loss)
    scores = team_scores(tried, [_score(r, has_probe=plan.probe is not None) for r in report.replicas])
    search = absorb(search, settings, tried, scores, plan.round)
    state = replace(
        state, search=search, search_steps=state.search_steps + report.steps, rollbacks=0, evidence=()
    )
    if search.stage != "done":
        return state
    if search.result is None:
        return replace(state, failure=Failure(reason="search", message=_dead_search(state, search)))
    return replace(state, log_scale=search.result, notes=state.notes + _search_notes(state, search))


def _score(report: ReplicaReport, *, has_probe: bool) -> float:
    """A candidate's score; a candidate that is not finite anywhere is dead whatever its probe says."""
    if not report.is_finite or (report.has_loss and not math.isfinite(report.loss)):
        return math.nan
    if not has_probe:
        return report.tail_loss
    return math.nan if report.probe_loss is None else report.probe_loss


def _search_notes(state: ScheduleState, search: Search) -> tuple[str, ...]:
    notes = []
    if not search.is_confirmed:
        notes.append(
            f"the search was not confirmed by {search.scouts} scouts; going on from the best of them, "
            f"max_lr = {_rate(state, search.best):.4g}: consider a start nearer to it"
        )
    if search.is_suspect:
        notes.append(
            f"the search's result, max_lr = {_rate(state, search.best):.4g}, is suspect: the next higher "
            "candidate was dead. Under plain SGD that is common and mostly harmless; elsewhere compare with "
            "a run from a third of it, or bound the rate with bounds={'lr': (low, high)}"
        )
    return tuple(notes)


def _dead_search(state: ScheduleState, search: Search) -> str:
    measured = search.pair_untrained_loss if search.pairs else search.untrained_loss
    untrained = "unknown" if measured is None else f"{measured:.4g}"
    rows = [
        f"  max_lr = {_rate(state, p.c):.4g}: {'not finite' if p.loss is None else f'{p.loss:.4g}'}"
        for phase in ("scout", "pairs")
        for p in pool(search.points, phase)
    ]
    return (
        f"the {'pairs' if search.pairs else 'scouts'} left no candidate that did better than the untrained "
        f"weights (loss {untrained}); start from another max_lr, widen bounds={{'lr': (low, high)}}, or "
        "check that the probe measures what is trained. Tried:\n" + "\n".join(rows)
    )


def _rate(state: ScheduleState, c: float) -> float:
    return state.config.max_lr[0] * math.exp(c)


def _roll_back(state: ScheduleState, report: RoundReport, verdict: Verdict) -> ScheduleState:
    """Weights go back to the newest boundary on every rank; here the rate comes down, and it is counted."""
    factor = math.exp(-AUTO_ROLLBACK_STEP) if isinstance(state.config.controller, Auto) else 0.5
    state = clipped(scaled(state, [(RATE, g) for g in range(len(state.ratios))], factor))
    seen = _describe(report, verdict)
    state = replace(state, rollbacks=state.rollbacks + 1, evidence=(*state.evidence, seen))
    if state.rollbacks > state.config.max_rollbacks:
        message = (
            f"{state.rollbacks} rounds in a row had to be rolled back "
            f"(max_rollbacks={state.config.max_rollbacks}), each time at a lower rate: look at the data and "
            "the loss of the replicas named here. " + " | ".join(state.evidence)
        )
        return replace(state, failure=Failure(reason="rollback_limit", message=message))
    return replace(state, notes=(*state.notes, f"rolled back to the newest boundary: {seen}"))


def _describe(report: RoundReport, verdict: Verdict) -> str:
    named = verdict.culprits or verdict.unhealthy
    seen = ", ".join(
        f"replica {r} {verdict.reasons[r]} (last loss {report.replicas[r].last_loss:.4g}, "
        f"at the window's start {report.replicas[r].start_loss:.4g})"
        for r in named
    )
    return f"round {report.round}: {seen}"


def _follow_rates(
    state: ScheduleState, plan: Plan, report: RoundReport, healthy: Sequence[int]
) -> ScheduleState:
    """Eqs. 4-9 for each group's rate, in rounds that the paper's controller planned."""
    config, controller = state.config, state.config.controller
    if not isinstance(controller, Paper) or state.rates is None or state.warm_rates is None:
        return state
    scored = [r for r in healthy if math.isfinite(report.replicas[r].loss)]
    if plan.shape != "constant" or RATE in state.frozen or not scored:
        return state
    weights = softmax_weights([report.replicas[r].loss for r in scored], controller.sigma)
    rounds = (config.total_steps - config.warmup_steps) / config.sync_every
    rates = list(state.rates)
    velocity, delta = dict(state.velocity), dict(state.delta)
    for group in range(len(rates)):
        key = (RATE, group)
        if _is_held(state, plan, key, rates[group]):
            continue
        moved = follow(
            rates[group],
            velocity.get(key, 0.0),
            [plan.base[key] * plan.values[key][r] for r in scored],
            weights,
            momentum=controller.momentum,
            step_size=controller.step_size,
            decay=decay_per_round(config.floor_lr[group], state.warm_rates[group], rounds),
        )
        rates[group], velocity[key], delta[key] = moved.base, moved.velocity, moved.delta
    return clipped(replace(state, rates=tuple(rates), velocity=velocity, delta=delta))


def _follow_explored(
    state: ScheduleState, plan: Plan, report: RoundReport, healthy: Sequence[int]
) -> ScheduleState:
    """Eqs. 4-8 for each further hyperparameter, on probe losses where there is a probe."""
    controller = state.config.controller
    is_waiting = isinstance(controller, Paper) and plan.shape != "constant"
    if isinstance(controller, Fixed) or is_waiting or plan.phase != "fan_out":
        return state
    losses = {r: _fan_out_loss(report.replicas[r], has_probe=plan.probe is not None) for r in healthy}
    scored = [r for r in healthy if math.isfinite(losses[r])]
    if not scored:
        return state
    values = dict(state.explored)
    velocity, delta = dict(state.velocity), dict(state.delta)
    for spec in state.config.explored:
        is_spread = len(set(plan.values[spec.key])) > 1
        if spec.name in state.frozen or not is_spread or _is_held(state, plan, spec.key, values[spec.key]):
            continue
        weights = softmax_weights([losses[r] for r in scored], spec.sigma)
        moved = follow(
            _to_scale(spec, values[spec.key]),
            velocity.get(spec.key, 0.0),
            [_to_scale(spec, plan.base[spec.key] * plan.values[spec.key][r]) for r in scored],
            weights,
            momentum=spec.momentum,
            step_size=spec.step_size,
        )
        values[spec.key] = math.exp(moved.base) if spec.scale == "log" else moved.base
        velocity[spec.key], delta[spec.key] = moved.velocity, moved.delta
    return clipped(replace(state, explored=values, velocity=velocity, delta=delta))


def _is_held(state: ScheduleState, plan: Plan, key: HParamKey, own: float) -> bool:
    """An override holds the value, or held it in this round: replicas were not around its own base."""
    return key in state.pins or plan.base[key] != own


def _fan_out_loss(report: ReplicaReport, *, has_probe: bool) -> float:
    if not has_probe:
        return report.loss
    # Its training loss would be no substitute: the others' probe losses are of other samples.
    return math.nan if report.probe_loss is None else report.probe_loss


def _to_scale(spec: Explored, value: float) -> float:
    return math.log(value) if spec.scale == "log" else value
