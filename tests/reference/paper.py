"""The paper's controller, a second time: slow, and as close to the page as Python allows.

Written from the equations of HDET (arXiv 2604.24708) as the algorithm page gives them, not from the fast
controller, so that an error must be made twice to stay unseen. Plain loops over lists; nothing is shared
with ``hdet_ray``. What chance decides (the permutations), what training tells (losses, health) and the
settings come in; the base values and each replica's values, round by round, go out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One learned number: the rate of one parameter group, or one further hyperparameter."""

    is_rate: bool
    start: float
    """A rate's ``max_lr``; a further hyperparameter's first base value."""
    alpha: float
    low: float
    high: float
    is_log: bool = False
    """Eqs. 4-9 act on the logarithm (further hyperparameters only; the paper's rate is not logarithmic)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The numbers that the equations name."""

    total_steps: int
    sync_every: int
    warmup_steps: int
    sigma: float
    step_size: float
    momentum: float
    pct_start: float = 0.3
    div_factor: float = 25.0
    final_div_factor: float = 1e4


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Steps ``start <= t < start + steps``; each column's base value and replicas' values at ``start``."""

    start: int
    steps: int
    bases: list[float]
    values: list[list[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What training tells at the end of a round, one entry a replica."""

    train_losses: Sequence[float]
    probe_losses: Sequence[float] | None
    is_healthy: Sequence[bool]


def spread(num_replicas: int, alpha: float) -> list[float]:
    """Eq. 1: the multipliers, mean 1."""
    delta = max((num_replicas - 1) / 2, 0.5)
    return [1 + alpha * (r - (num_replicas - 1) / 2) / delta for r in range(num_replicas)]


def one_cycle(t: int, max_lr: float, settings: Settings) -> float:
    """OneCycleLR with cosine annealing in two phases: the base schedule eta(t)."""
    first = max_lr / settings.div_factor
    floor = first / settings.final_div_factor
    top = settings.pct_start * settings.total_steps - 1
    end = settings.total_steps - 1
    if t <= top:
        return first + (max_lr - first) * (1 - math.cos(math.pi * t / top)) / 2
    return max_lr + (floor - max_lr) * (1 - math.cos(math.pi * (t - top) / (end - top))) / 2


def rounds_of(settings: Settings) -> Iterator[tuple[int, int]]:
    """First step and length of each round: T steps, cut at S_warm and at S."""
    start = 0
    while start < settings.total_steps:
        end = min(start + settings.sync_every, settings.total_steps)
        if start < settings.warmup_steps < end:
            end = settings.warmup_steps
        yield start, end - start
        start = end


def softmax_weights(losses: Sequence[float], sigma: float) -> list[float]:
    """Eqs. 4-5: standardized scores, then their softmax."""
    mean = math.fsum(losses) / len(losses)
    scores = [(mean - loss) / sigma for loss in losses]
    top = max(scores)  # a softmax doesn't change when all scores move by the same number
    powers = [math.exp(score - top) for score in scores]
    total = math.fsum(powers)
    return [power / total for power in powers]


def gap(values: Sequence[float], weights: Sequence[float]) -> float:
    """Eq. 6: the weighted mean less the plain mean of what the replicas tried."""
    weighted = 0.0
    for value, weight in zip(values, weights, strict=True):
        weighted += weight * value
    return weighted - math.fsum(values) / len(values)


def clip(value: float, column: Column) -> float:
    """Into the column's bounds."""
    return min(max(value, column.low), column.high)


class PaperController:
    """Eqs. 4-9 over the columns; call ``plan`` and ``converge`` in turn."""

    def __init__(self, settings: Settings, columns: Sequence[Column]) -> None:
        self.settings = settings
        self.columns = list(columns)
        self.bases = [column.start for column in columns]
        self.velocities = [0.0 for _ in columns]
        self.rounds = list(rounds_of(settings))
        self.round = 0
        # K of eq. 9: converges that move the rate.
        self.num_updates = (settings.total_steps - settings.warmup_steps) / settings.sync_every
        self.planned: Round | None = None

    def plan(self, permutations: Sequence[Sequence[int]]) -> Round:
        """The next round: replica r of column j gets ``base_j * rho[permutations[j][r]]``."""
        start, steps = self.rounds[self.round]
        values = []
        for j, column in enumerate(self.columns):
            if column.is_rate and start <= self.settings.warmup_steps:
                # Up to S_warm the rate is the base schedule's; its value there is what eq. 8 goes on from.
                self.bases[j] = clip(one_cycle(start, column.start, self.settings), column)
            rhos = spread(len(permutations[j]), column.alpha)
            tried = [self.bases[j] * rhos[place] for place in permutations[j]]
            # A rate's bounds are its base value's; a further hyperparameter's hold for every replica.
            values.append(tried if column.is_rate else [clip(value, column) for value in tried])
        self.planned = Round(start=start, steps=steps, bases=list(self.bases), values=values)
        return self.planned

    def converge(self, told: Told) -> None:
        """Eqs. 4-9 at the end of the round that ``plan`` gave last."""
        assert self.planned is not None
        planned = self.planned
        self.round += 1
        if planned.start < self.settings.warmup_steps:
            return
        healthy = [r for r, is_healthy in enumerate(told.is_healthy) if is_healthy]
        for j, column in enumerate(self.columns):
            losses = told.train_losses
            if not column.is_rate and told.probe_losses is not None:
                losses = told.probe_losses
            weights = softmax_weights([losses[r] for r in healthy], self.settings.sigma)
            tried = [planned.values[j][r] for r in healthy]
            if column.is_log:
                tried = [math.log(value) for value in tried]
            delta = gap(tried, weights)
            beta = self.settings.momentum
            self.velocities[j] = beta * self.velocities[j] + (1 - beta) * delta
            self.bases[j] = clip(self.moved(j), column)

    def moved(self, j: int) -> float:
        """Eq. 8: the column's next base value, before it is clipped to its bounds."""
        column = self.columns[j]
        move = self.settings.step_size * self.velocities[j]
        if column.is_rate:
            return self.bases[j] * (1 - self.gamma(column)) + move
        if column.is_log:
            return math.exp(math.log(self.bases[j]) + move)
        return self.bases[j] + move

    def gamma(self, column: Column) -> float:
        """Eq. 9: the decay that leads from the rate at S_warm to OneCycleLR's floor in K updates."""
        floor = column.start / (self.settings.div_factor * self.settings.final_div_factor)
        warm = clip(one_cycle(self.settings.warmup_steps, column.start, self.settings), column)
        return 1 - (floor / warm) ** (1 / self.num_updates)
