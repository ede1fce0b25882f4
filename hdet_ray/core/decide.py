"""`start` and `decide`: from reports to plans, and nothing else.

Pure functions of the standard library: the same arguments give the same plan on every machine, so a
ledger of reports replays to the same plans, bit for bit.
"""

from __future__ import annotations

from dataclasses import replace

from hdet_ray.config import Auto, Fixed, Paper
from hdet_ray.core.codec import digest
from hdet_ray.core.health import Verdict, judge
from hdet_ray.core.learning import enter_paper, learn, with_rates
from hdet_ray.core.plan import RATE, Plan
from hdet_ray.core.planning import plan_for
from hdet_ray.core.report import RoundReport
from hdet_ray.core.search import Search, search_lengths, shortest_run
from hdet_ray.core.state import ScheduleConfig, ScheduleState
from hdet_ray.core.steering import fold_commands, rate_c_bounds, settle_overrides
from hdet_ray.exceptions import ConfigError, LedgerError


def start(config: ScheduleConfig, num_replicas: int) -> tuple[ScheduleState, Plan]:
    """The state and the plan of the first round.

    Raises:
        ConfigError: fewer than 1 replica, or more hyperparameters than these replicas can tell apart.
    """
    if num_replicas < 1:
        raise ConfigError(f"num_replicas={num_replicas} must be at least 1")
    _check_columns(config, num_replicas)
    rate_bounds = {(RATE, g): config.rate_bounds(g) for g in range(len(config.max_lr))}
    state = ScheduleState(
        config=config,
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
    _check_report(plan, report)
    verdict = judge_report(state, plan, report)
    state = replace(state, notes=())
    state = fold_commands(state, report.commands)
    state = learn(state, plan, report, verdict)
    state = replace(state, round=state.round + 1, step=state.step + report.steps, calls=state.calls + report.calls)
    state = settle_overrides(enter_paper(state, plan, report))
    return state, plan_for(state, report.next_num_replicas or len(report.replicas))


def judge_report(state: ScheduleState, plan: Plan, report: RoundReport) -> Verdict:
    """The verdict that the boundary of this round reached."""
    return judge(plan, report.replicas, state.config.thresholds)


def _check_report(plan: Plan, report: RoundReport) -> None:
    if report.round != plan.round:
        raise LedgerError(f"round {report.round} reported where round {plan.round} is due: a line is missing or doubled")
    expected = digest(plan)
    if report.plan_digest != expected:
        raise LedgerError(
            f"round {report.round} followed plan {report.plan_digest}, but the state gives plan {expected}: "
            "the report belongs to another run or was changed"
        )


def _check_columns(config: ScheduleConfig, num_replicas: int) -> None:
    columns = sum(e.alpha > 0 for e in config.explored)
    columns += config.controller.alpha > 0 and columns > 0 and not isinstance(config.controller, Paper)
    if num_replicas > 1 and columns > num_replicas - 1:
        raise ConfigError(
            f"{columns} hyperparameters can't be told apart by {num_replicas} replicas; explore at most "
            f"{num_replicas - 1}, or use more replicas"
        )


def _first_search(state: ScheduleState, num_replicas: int) -> Search | None:
    settings = state.config.controller
    if not isinstance(settings, Auto):
        return None
    lengths = search_lengths(settings, state.config.total_steps)
    low, high = rate_c_bounds(state)
    if low > high:
        raise ConfigError("bounds['lr'] leave no common factor for the rates of all groups; widen them")
    if lengths is None or num_replicas == 1:
        return None
    return Search(stage="scout", scout_steps=lengths[0], pair_steps=lengths[1], low=low, high=high)


def _starting_notes(config: ScheduleConfig, num_replicas: int) -> tuple[str, ...]:
    controller = config.controller
    needs_peers = isinstance(controller, Auto | Paper) or controller.alpha > 0 or bool(config.explored)
    if num_replicas == 1:
        if not needs_peers:
            return ()
        return (
            f"one replica has nobody to be compared with: controller={type(controller).__name__.lower()!r} "
            "trains it on the base schedule; start at least 2 replicas to explore",
        )
    if isinstance(controller, Fixed | Paper):
        return ()
    if search_lengths(controller, config.total_steps) is None:
        return (
            f"total_steps={config.total_steps} is too short for a search (it needs {shortest_run(controller)}, "
            f"so that it costs at most {controller.max_search_ratio:.0%}): training plain one-cycle at max_lr",
        )
    if not config.has_probe:
        return (
            "no probe: candidates are compared on each replica's own training loss over the last quarter of a "
            "round, which is noisier; pass probe= for a sharper search",
        )
    return ()

