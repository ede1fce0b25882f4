"""`start` and `decide`: from reports to plans, and nothing else.

Pure functions of the standard library: the same arguments give the same plan on every machine, so a
ledger of reports replays to the same plans, bit for bit.
"""

from __future__ import annotations

from dataclasses import replace

from hdet_ray.config import Auto, Controller, Fixed, Paper
from hdet_ray.core.codec import digest
from hdet_ray.core.designs import check_columns
from hdet_ray.core.health import Verdict, judge
from hdet_ray.core.learning import enter_paper, learn, learn_from_trial, with_rates
from hdet_ray.core.plan import RATE, Plan
from hdet_ray.core.planning import plan_for, trial_of
from hdet_ray.core.report import RoundReport
from hdet_ray.core.search import Search, search_lengths, shortest_run
from hdet_ray.core.state import ScheduleConfig, ScheduleState
from hdet_ray.core.steering import fold_commands, rate_c_bounds, settle_overrides
from hdet_ray.exceptions import ConfigError, LedgerError


def start(config: ScheduleConfig, num_replicas: int, *, first_step: int = 0) -> tuple[ScheduleState, Plan]:
    """The state and the plan of the first round.

    Args:
        config: What the run is started with.
        num_replicas: N, at least 1.
        first_step: Where on the schedule the run begins; a run that begins in the middle does not search.

    Raises:
        ConfigError: fewer than 1 replica, or more hyperparameters than these replicas can tell apart.
    """
    if num_replicas < 1:
        raise ConfigError(f"num_replicas={num_replicas} must be at least 1")
    _check_columns(config, num_replicas)
    rate_bounds = {(RATE, g): config.rate_bounds(g) for g in range(len(config.max_lr))}
    state = ScheduleState(
        config=config,
        step=first_step,
        ratios=(1.0,) * len(config.max_lr),
        explored={e.key: e.base for e in config.explored},
        bounds=rate_bounds | {e.key: (e.low, e.high) for e in config.explored},
        notes=_starting_notes(config, num_replicas),
    )
    state = replace(state, search=_first_search(state, num_replicas))
    if isinstance(config.controller, Paper) and config.warmup_steps == 0:
        cycle = config.cycle
        rates = [cycle.lr_at(g, 0) if cycle else rate for g, rate in enumerate(config.max_lr)]
        state = with_rates(state, rates)
    return state, plan_for(state, num_replicas)


def decide(state: ScheduleState, report: RoundReport) -> tuple[ScheduleState, Plan]:
    """Read one round's report and plan the next.

    Pure: the same arguments give the same plan on every machine. Randomness comes from
    ``(state.config.seed, round, hyperparameter)``.

    Raises:
        LedgerError: the report is of another round, or of another plan than this state's.
    """
    plan = plan_for(state, len(report.replicas))
    return decide_after(state, plan, digest(plan), report, judge_report(state, plan, report))


def decide_after(
    state: ScheduleState, plan: Plan, plan_digest: str, report: RoundReport, verdict: Verdict
) -> tuple[ScheduleState, Plan]:
    """`decide`, for who still holds the plan that the round followed, its digest, and the verdict."""
    _check_report(plan, plan_digest, report)
    tried = trial_of(state, plan.num_replicas) if plan.is_search else None
    state = fold_commands(replace(state, notes=()), report.commands)
    if tried is None:
        state = learn(state, plan, report, verdict)
    else:
        state = learn_from_trial(state, tried, plan, report)
    state = replace(
        state, round=state.round + 1, step=state.step + report.steps, calls=state.calls + report.calls
    )
    state = settle_overrides(enter_paper(state, plan, report))
    return state, plan_for(state, report.next_num_replicas or len(report.replicas))


def judge_report(state: ScheduleState, plan: Plan, report: RoundReport) -> Verdict:
    """The verdict that the boundary of this round reached."""
    return judge(plan, report.replicas, state.config.thresholds)


def _check_report(plan: Plan, expected: str, report: RoundReport) -> None:
    if report.round != plan.round:
        raise LedgerError(
            f"round {report.round} reported where round {plan.round} is due: a line is missing or doubled"
        )
    if report.plan_digest != expected:
        raise LedgerError(
            f"round {report.round} followed plan {report.plan_digest}, but the state gives plan {expected}: "
            "the report belongs to another run or was changed"
        )


def _check_columns(config: ScheduleConfig, num_replicas: int) -> None:
    columns = sum(e.alpha > 0 for e in config.explored)
    columns += config.controller.alpha > 0 and columns > 0 and not isinstance(config.controller, Paper)
    if num_replicas > 1:
        check_columns(columns, num_replicas)


def _first_search(state: ScheduleState, num_replicas: int) -> Search | None:
    settings = state.config.controller
    if not isinstance(settings, Auto):
        return None
    lengths = search_lengths(settings, state.config.total_steps)
    if lengths is None or num_replicas == 1 or state.step > 0:
        return None
    low, high = rate_c_bounds(state)
    return Search(stage="scout", scout_steps=lengths[0], pair_steps=lengths[1], low=low, high=high)


def _starting_notes(config: ScheduleConfig, num_replicas: int) -> tuple[str, ...]:
    controller = config.controller
    if num_replicas == 1:
        needs_peers = isinstance(controller, Auto | Paper) or controller.alpha > 0 or bool(config.explored)
        return (_alone(controller),) if needs_peers else ()
    if isinstance(controller, Fixed | Paper):
        return ()
    if search_lengths(controller, config.total_steps) is None:
        return (_too_short(controller, config.total_steps),)
    return () if config.has_probe else (_NO_PROBE,)


_NO_PROBE = (
    "no probe: candidates are compared on each replica's own training loss over the last quarter of a round, "
    "which is noisier; pass probe= for a sharper search"
)


def _alone(controller: Controller) -> str:
    name = type(controller).__name__.lower()
    return (
        f"one replica has nobody to be compared with: controller={name!r} trains without looking around; "
        "start at least 2 replicas to explore"
    )


def _too_short(controller: Auto, total_steps: int) -> str:
    return (
        f"total_steps={total_steps} is too short for a search (it needs {shortest_run(controller)}, so that "
        f"it costs at most {controller.max_search_ratio:.0%}): training plain one-cycle at max_lr"
    )
