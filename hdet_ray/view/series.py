"""What the report's charts show, as numbers: one source for the page and for the picture.

Everything is read off a `History`. Rates are those of the first parameter group, since the others move with
it; x is the schedule's step t. A value that is not there (a loss that is not finite, a gap between rounds)
is None.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from hdet_ray.core.plan import RATE, Phase, centre_rate, value_at
from hdet_ray.core.search import Point, Search, pool
from hdet_ray.view.history import History, Round

TrialPhase = Literal["scout", "pairs"]

_MAX_STEPS_DRAWN = 4000
_PARABOLA_POINTS = 41


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A line: y over x, with gaps where y is None."""

    label: str
    x: tuple[float, ...]
    y: tuple[float | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """Neighbouring rounds of one phase, from one step to another."""

    phase: Phase
    first_step: int
    end_step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One candidate of the search."""

    round: int
    phase: TrialPhase
    rate: float
    loss: float | None
    """Its probe loss; None where that was not finite."""
    is_dead: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSeries:
    """What the search tried and concluded."""

    trials: tuple[Trial, ...]
    parabolas: tuple[tuple[TrialPhase, Curve], ...]
    """Through the best point of a phase and its two neighbours, where all three lived."""
    started_from: float
    result: float | None
    untrained_loss: float | None
    is_suspect: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Another run to compare with."""

    label: str
    history: History


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportSeries:
    """Everything that a report draws."""

    bands: tuple[Band, ...]
    base: Curve
    """The rate at the centre of the spread."""
    one_cycle: Curve | None
    """Plain one-cycle from the ``max_lr`` that the user gave; None for a base of the user's own."""
    reference_rates: tuple[Curve, ...]
    """Rates of the references, those left out that equal plain one-cycle."""
    fan: tuple[Curve, ...]
    """Each replica's rate, in the rounds where they differ; empty where they never do."""
    search: SearchSeries | None
    losses: tuple[Curve, ...]
    """Each replica's mean training loss of a round, at the step where it ended."""
    reference_losses: tuple[Curve, ...]
    """Each reference's mean training loss over its replicas."""
    spread: Curve | None
    """Highest minus lowest loss among live replicas; None with one replica."""
    explored: tuple[Curve, ...]
    """Base values of further hyperparameters by round."""


def series_of(history: History, references: Sequence[Reference] = ()) -> ReportSeries:
    """The series of a run.

    Args:
        history: At least one round.
        references: Other runs, of the same length.
    """
    stride = _stride(history)
    one_cycle = _one_cycle(history, stride)
    rates = [_base(r.history, stride, f"{r.label}") for r in references]
    return ReportSeries(
        bands=_bands(history.rounds),
        base=_base(history, stride, "base rate"),
        one_cycle=one_cycle,
        reference_rates=tuple(c for c in rates if one_cycle is None or not _is_same(c, one_cycle)),
        fan=_fan(history, stride),
        search=_search(history),
        losses=_losses(history),
        reference_losses=tuple(_mean_loss(r) for r in references),
        spread=_spread(history.rounds),
        explored=_explored(history.rounds),
    )


def _stride(history: History) -> int:
    return max(history.state.config.total_steps // _MAX_STEPS_DRAWN, 1)


def _steps(done: Round, stride: int) -> range:
    return range(done.plan.step, done.end_step, stride)


def _bands(rounds: Sequence[Round]) -> tuple[Band, ...]:
    bands = []
    for phase, group in groupby(rounds, key=lambda r: r.plan.phase):
        members = list(group)
        bands.append(Band(phase=phase, first_step=members[0].plan.step, end_step=members[-1].end_step))
    return tuple(bands)


def _base(history: History, stride: int, label: str) -> Curve:
    steps: list[float] = []
    rates: list[float | None] = []
    for done in history.rounds:
        if done.plan.shape == "external":
            external = done.report.external_rates.get((RATE, 0))
            if external is not None:
                steps.append(done.end_step)
                rates.append(centre_rate(done.plan, 0, done.plan.step, external=external))
            continue
        for step in _steps(done, stride):
            steps.append(step)
            rates.append(centre_rate(done.plan, 0, step))
    return Curve(label=label, x=tuple(steps), y=tuple(rates))


def _one_cycle(history: History, stride: int) -> Curve | None:
    cycle = history.initial.config.cycle
    if cycle is None:
        return None
    steps = tuple(range(0, cycle.total_steps, stride))
    return Curve(label="plain one-cycle", x=steps, y=tuple(cycle.lr_at(0, step) for step in steps))


def _is_same(curve: Curve, other: Curve) -> bool:
    known = dict(zip(other.x, other.y, strict=True))
    return all(y == known.get(x) for x, y in zip(curve.x, curve.y, strict=True))


def _fan(history: History, stride: int) -> tuple[Curve, ...]:
    spread = [r for r in history.rounds if _differ(r) and r.plan.shape != "external"]
    count = max((r.plan.num_replicas for r in spread), default=0)
    return tuple(_replica_rates(spread, replica, stride) for replica in range(count))


def _differ(done: Round) -> bool:
    return len(set(done.plan.values.get((RATE, 0), ()))) > 1


def _replica_rates(rounds: Sequence[Round], replica: int, stride: int) -> Curve:
    steps: list[float] = []
    rates: list[float | None] = []
    for done in rounds:
        if replica >= done.plan.num_replicas:
            continue
        for step in _steps(done, stride):
            steps.append(step)
            rates.append(value_at(done.plan, RATE, 0, replica, step))
        steps.append(done.end_step)  # No line from one round's end to the next one's start.
        rates.append(None)
    return Curve(label=f"replica {replica}", x=tuple(steps), y=tuple(rates))


def _search(history: History) -> SearchSeries | None:
    search = history.state.search
    if search is None or not search.points:
        return None
    max_lr = history.initial.config.max_lr[0]
    return SearchSeries(
        trials=tuple(
            Trial(round=p.round, phase=p.phase, rate=max_lr * math.exp(p.c), loss=p.loss, is_dead=p.is_dead)
            for p in search.points
        ),
        parabolas=tuple(_parabolas(search, max_lr)),
        started_from=max_lr,
        result=None if search.result is None else max_lr * math.exp(search.result),
        untrained_loss=search.untrained_loss,
        is_suspect=search.is_suspect,
    )


def _parabolas(search: Search, max_lr: float) -> Iterator[tuple[TrialPhase, Curve]]:
    phases: tuple[TrialPhase, ...] = ("scout", "pairs")
    for phase in phases:
        pooled = pool(search.points, phase)
        live = [(p.loss, i) for i, p in enumerate(pooled) if p.loss is not None and not p.is_dead]
        if not live:
            continue
        best = min(live)[1]
        three = pooled[max(best - 1, 0) : best + 2]
        if len(three) == 3 and all(p.loss is not None and not p.is_dead for p in three):
            yield phase, _parabola(three, max_lr)


def _parabola(three: Sequence[Point], max_lr: float) -> Curve:
    """Lagrange's polynomial through three points, over their range, in the log rate."""
    knots = [(p.c, p.loss) for p in three if p.loss is not None]
    low, high = knots[0][0], knots[-1][0]
    cs = [low + (high - low) * i / (_PARABOLA_POINTS - 1) for i in range(_PARABOLA_POINTS)]
    losses = []
    for c in cs:
        terms = [
            loss * math.prod((c - other) / (own - other) for other, _ in knots if other != own)
            for own, loss in knots
        ]
        losses.append(sum(terms))
    return Curve(label="parabola", x=tuple(max_lr * math.exp(c) for c in cs), y=tuple(losses))


def _losses(history: History) -> tuple[Curve, ...]:
    count = max((r.plan.num_replicas for r in history.rounds), default=0)
    curves = []
    for replica in range(count):
        rounds = [r for r in history.rounds if replica < r.plan.num_replicas]
        curves.append(
            Curve(
                label=f"replica {replica}",
                x=tuple(r.end_step for r in rounds),
                y=tuple(_finite(r.report.replicas[replica].loss) for r in rounds),
            )
        )
    return tuple(curves)


def _mean_loss(reference: Reference) -> Curve:
    steps, losses = [], []
    for done in reference.history.rounds:
        live = done.live_losses
        steps.append(done.end_step)
        losses.append(statistics.fmean(live) if live else None)
    return Curve(label=reference.label, x=tuple(steps), y=tuple(losses))


def _spread(rounds: Sequence[Round]) -> Curve | None:
    shared = [r for r in rounds if r.plan.num_replicas > 1]
    if not shared:
        return None
    spreads = [max(live) - min(live) if len(live := r.live_losses) > 1 else None for r in shared]
    return Curve(label="highest − lowest", x=tuple(r.end_step for r in shared), y=tuple(spreads))


def _explored(rounds: Sequence[Round]) -> tuple[Curve, ...]:
    keys = sorted({key for r in rounds for key in r.after.explored})
    return tuple(
        Curve(
            label=f"{name}, group {group}",
            x=tuple(r.plan.step for r in rounds),
            y=tuple(r.plan.base.get((name, group)) for r in rounds),
        )
        for name, group in keys
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
