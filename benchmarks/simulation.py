"""A whole run without processes: the plans of `core`, followed by stacked models instead of ranks.

What the real scheduler does at a boundary happens here too, through the same pure functions: `value_at`
for every value, `judge_report` for the verdict, `decide` for the next plan. What differs is the cost:
replicas that are equal by construction (one team, equal values) are one model on their joined batch.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from benchmarks.stacked import ROW_OPTIMIZERS, RowOptimizer, StackedNetwork, flat_parameters
from hdet_ray.config import Controller
from hdet_ray.core.codec import digest
from hdet_ray.core.decide import decide, judge_report, start
from hdet_ray.core.one_cycle import OneCycle
from hdet_ray.core.plan import MOMENTUM, RATE, Plan, value_at
from hdet_ray.core.report import ReplicaReport, RoundReport
from hdet_ray.core.state import ScheduleConfig, ScheduleState
from hdet_ray.optim.window import summarize

_MAX_SAMPLES = 1536
"""Samples of all rows in one step of a stack: more gain nothing once the rows leave the caches."""
_MOMENTUM_RANGE = (0.85, 0.95)
"""torch's defaults for `OneCycleLR`."""
_DIV_FACTOR, _FINAL_DIV_FACTOR = 25.0, 1e4


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One model of a round: the replicas that it stands for, all of one team and with the same values."""

    team: int
    replicas: tuple[int, ...]


@dataclass(slots=True, kw_only=True)
class SimulatedRun:
    """One training run, between two rounds: then all replicas hold the same weights."""

    label: Any
    """For the caller: what this run is."""
    task: Any
    network: StackedNetwork
    state: ScheduleState
    plan: Plan
    weights: Tensor
    """``(1, P)``."""
    optimizer: RowOptimizer
    is_judged: bool = True
    """Boundaries may leave replicas out and roll back; plain one-cycle has nobody who would."""
    history: list[tuple[Plan, RoundReport]] = field(default_factory=list)

    @property
    def is_done(self) -> bool:
        """Nothing is left to train, or nothing can go on."""
        return self.plan.num_steps == 0


def schedule_config(settings: Any, controller: Controller) -> ScheduleConfig:
    """What `HDETOneCycleLR` hands to `core` for an optimizer with one group and torch's defaults."""
    low, high = _MOMENTUM_RANGE
    cycle = OneCycle(
        total_steps=settings.total_steps,
        max_lr=(settings.max_lr,),
        base_momentum=(low,),
        max_momentum=(high,),
        div_factor=_DIV_FACTOR,
        final_div_factor=_FINAL_DIV_FACTOR,
    )
    return ScheduleConfig(
        controller=controller,
        total_steps=settings.total_steps,
        max_lr=(settings.max_lr,),
        floor_lr=(cycle.min_lr(0),),
        cycle=cycle,
        has_probe=True,
        probe_samples=settings.probe_samples,
        seed=settings.seed,
    )


def new_run(
    label: Any,
    settings: Any,
    task: Any,
    network: StackedNetwork,
    num_replicas: int,
    *,
    is_judged: bool = True,
    dtype: torch.dtype = torch.float32,
) -> SimulatedRun:
    """A run before its first step."""
    state, plan = start(schedule_config(settings, settings.build_controller()), num_replicas)
    weights = flat_parameters(task.build_model()).to(dtype)[None]
    return SimulatedRun(
        label=label,
        task=task,
        network=network,
        state=state,
        plan=plan,
        weights=weights,
        optimizer=ROW_OPTIMIZERS[settings.optimizer].untouched(weights),
        is_judged=is_judged,
    )


def stacked_network(module: ModuleType, settings: Any) -> StackedNetwork:
    """The network of a workload."""
    return StackedNetwork(module.Task(settings).build_model())


def simulate(runs: Sequence[SimulatedRun], on_round: Callable[[], None] = lambda: None) -> None:
    """Train all runs to their end. Those whose rounds look alike advance together.

    Args:
        runs: Of one network; anything else may differ.
        on_round: Called after each round of a stack.
    """
    while waiting := [run for run in runs if not run.is_done]:
        alike: dict[Any, list[SimulatedRun]] = defaultdict(list)
        for run in waiting:
            alike[_shape(run)].append(run)
        # The ones furthest behind first, so that others that look like them can catch up and join.
        behind = min(alike.values(), key=lambda group: min(r.state.step for r in group))
        for stack in _stacks(sorted(behind, key=lambda r: id(r.task))):
            advance(stack)
            on_round()


def advance(runs: Sequence[SimulatedRun]) -> None:
    """One round of runs whose rounds have the same number of steps and the same rows."""
    first = runs[0]
    rows = rows_of(first.plan)
    untrained = [_probe(run, run.weights, run.plan.untrained_probe) for run in runs]
    owner = torch.arange(len(runs)).repeat_interleave(len(rows))
    weights = torch.cat([run.weights for run in runs])[owner]
    optimizer = _joined([run.optimizer for run in runs]).rows(owner)
    rates, momentums = _values(runs, rows)
    losses = torch.empty(first.plan.num_steps, len(runs), first.plan.num_replicas, dtype=torch.float64)
    for j in range(first.plan.num_steps):
        inputs, targets = _batches(runs, rows, j, weights.dtype)
        gradients, sample_losses = first.network.gradients(weights, inputs, targets)
        if first.plan.is_one_team and len(rows) > 1:
            gradients = _shared(gradients, len(rows))
        losses[j] = sample_losses.view(len(runs), first.plan.num_replicas, -1).mean(2)[:, _order(rows)]
        optimizer.step(weights, gradients, rates[j], momentums[j])
    for i, run in enumerate(runs):
        mine = torch.arange(i * len(rows), (i + 1) * len(rows))
        _end_round(run, rows, weights[mine], optimizer.rows(mine), losses[:, i], untrained[i])


def rows_of(plan: Plan) -> list[Row]:
    """The models of a round: one for each team whose values are equal, else one for each replica.

    Raises:
        ValueError: rows of unequal numbers of replicas, whose batches can't be stacked.
    """
    teams: dict[int, list[int]] = defaultdict(list)
    for replica, team in enumerate(plan.teams):
        teams[-1 - replica if team is None else team].append(replica)
    if plan.is_one_team and not plan.keeps_replicas_equal:
        return [Row(team=0, replicas=(r,)) for r in range(plan.num_replicas)]
    rows = [Row(team=team, replicas=tuple(members)) for team, members in teams.items()]
    if len({len(row.replicas) for row in rows}) > 1:
        raise ValueError(f"teams {plan.teams} are of unequal size; simulate N = 1, 2, 4, 8 or 16")
    return rows


def _shape(run: SimulatedRun) -> tuple[Any, ...]:
    plan = run.plan
    return plan.num_replicas, plan.num_steps, plan.teams, plan.keeps_replicas_equal


def _stacks(runs: Sequence[SimulatedRun]) -> list[Sequence[SimulatedRun]]:
    samples = runs[0].plan.num_replicas * runs[0].task.settings.batch_size
    size = max(1, _MAX_SAMPLES // samples)
    return [runs[i : i + size] for i in range(0, len(runs), size)]


def _values(runs: Sequence[SimulatedRun], rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """Rates and momentums of every step and model, each ``(steps, M, 1)``."""

    def table(hparam: str) -> Tensor:
        values = [
            [
                value_at(run.plan, hparam, 0, row.replicas[0], run.plan.step + j)
                for run in runs
                for row in rows
            ]
            for j in range(runs[0].plan.num_steps)
        ]
        return torch.tensor(values, dtype=runs[0].weights.dtype)[:, :, None]

    return table(RATE), table(MOMENTUM)


def _batches(
    runs: Sequence[SimulatedRun], rows: Sequence[Row], j: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The round's j-th samples of every model: inputs ``(M, B, ...)``, targets ``(M, B)``."""
    drawn: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
    inputs, targets = [], []
    for run in runs:
        key = id(run.task), run.plan.step + j
        if key not in drawn:
            ranks = range(run.plan.num_replicas)
            by_rank = [run.task.batch(run.plan.step + j, rank) for rank in ranks]
            drawn[key] = [
                (
                    torch.cat([by_rank[r][0] for r in row.replicas]),
                    torch.cat([by_rank[r][1] for r in row.replicas]),
                )
                for row in rows
            ]
        inputs += [x for x, _ in drawn[key]]
        targets += [y for _, y in drawn[key]]
    stacked = torch.stack(inputs)
    return stacked.to(dtype) if stacked.is_floating_point() else stacked, torch.stack(targets)


def _shared(gradients: Tensor, num_rows: int) -> Tensor:
    """Each run's mean gradient, for all of its models."""
    by_run = gradients.view(-1, num_rows, gradients.shape[1])
    return by_run.mean(1, keepdim=True).expand_as(by_run).reshape(gradients.shape)


def _order(rows: Sequence[Row]) -> Tensor:
    """Where each replica's losses stand, replica by replica."""
    replicas = [r for row in rows for r in row.replicas]
    return torch.tensor([replicas.index(r) for r in range(len(replicas))])


def _joined(optimizers: Sequence[RowOptimizer]) -> RowOptimizer:
    """The state of several optimizers as rows of one."""
    kind = type(optimizers[0])
    fields = [name for name, v in _tensors(optimizers[0]).items() if isinstance(v, Tensor)]
    return kind(**{name: torch.cat([getattr(o, name) for o in optimizers]) for name in fields})


def _tensors(optimizer: RowOptimizer) -> dict[str, Any]:
    return {name: getattr(optimizer, name) for name in type(optimizer).__slots__}  # type: ignore[attr-defined]


def _probe(run: SimulatedRun, weights: Tensor, span: Any) -> list[float]:
    """Each row's mean probe loss; empty where none is asked for."""
    if span is None:
        return []
    batches = [run.task.probe_batch(k) for k in range(span.first, span.first + span.count)]
    inputs = torch.cat([x for x, _ in batches])
    inputs = inputs.to(weights.dtype) if inputs.is_floating_point() else inputs
    targets = torch.cat([y for _, y in batches])
    return [float(loss) for loss in run.network.mean_losses(weights, inputs, targets)]


def _end_round(
    run: SimulatedRun,
    rows: Sequence[Row],
    weights: Tensor,
    optimizer: RowOptimizer,
    losses: Tensor,
    untrained: Sequence[float],
) -> None:
    """A boundary: report, judge, average or put back, and the next plan."""
    plan = run.plan
    probes = _probe(run, weights, plan.probe)
    finite = weights.isfinite().all(1).tolist()
    row_of = {r: i for i, row in enumerate(rows) for r in row.replicas}
    replicas = tuple(
        _summary(losses[:, r].tolist(), finite[row_of[r]], probes[row_of[r]] if probes else None)
        for r in range(plan.num_replicas)
    )
    report = RoundReport(
        round=plan.round,
        calls=plan.num_steps,
        steps=plan.num_steps,
        plan_digest=digest(plan),
        replicas=replicas,
        untrained_loss=untrained[0] if untrained else None,
    )
    verdict = judge_report(run.state, plan, report)
    if not run.is_judged:
        verdict = replace(verdict, weights=(1.0,) * plan.num_replicas, rolls_back=False)
    if plan.end != "put_back" and not verdict.rolls_back:
        by_row = [verdict.weights[row.replicas[0]] for row in rows]
        run.weights = _averaged(weights, by_row)
        run.optimizer = optimizer.rows(torch.tensor([0]))
        for name, rows_of_state in optimizer.state().items():
            setattr(run.optimizer, name, _averaged(rows_of_state, by_row))
    run.history.append((plan, report))
    run.state, run.plan = decide(run.state, report)


def _averaged(rows: Tensor, by_row: Sequence[float]) -> Tensor:
    if len(rows) == 1:
        return rows
    healthy = torch.tensor([weight > 0 for weight in by_row])
    return rows[healthy].mean(0, keepdim=True)


def _summary(losses: Sequence[float], is_finite: bool, probe_loss: float | None) -> ReplicaReport:
    """One replica's window of losses, as the scheduler reports it."""
    window = summarize(losses)
    return ReplicaReport(
        loss=window.mean,
        tail_loss=window.tail,
        start_loss=window.start,
        last_loss=window.last,
        noise=window.noise,
        is_finite=is_finite,
        brought_nonfinite=not all(map(math.isfinite, losses)),
        probe_loss=probe_loss,
    )
