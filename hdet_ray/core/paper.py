"""The paper's zero-order rule (HDET, eqs. 4-9), one hyperparameter of one group at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Follower:
    """A base value and its velocity, after one update."""

    base: float
    velocity: float
    delta: float
    """Delta of eq. 6: where the better replicas were, relative to the mean."""


def softmax_weights(losses: Sequence[float], sigma: float) -> tuple[float, ...]:
    """How much each replica's value counts (HDET, eqs. 4 and 5).

    s_r = (mean(L) - L_r) / sigma,   w = softmax(s)
    """
    mean = math.fsum(losses) / len(losses)
    scores = [(mean - loss) / sigma for loss in losses]
    top = max(scores)
    exps = [math.exp(s - top) for s in scores]
    total = math.fsum(exps)
    return tuple(e / total for e in exps)


def follow(
    base: float,
    velocity: float,
    values: Sequence[float],
    weights: Sequence[float],
    *,
    momentum: float,
    step_size: float,
    decay: float = 0.0,
) -> Follower:
    """Move a base value towards where the better replicas were (HDET, eqs. 6-8).

    Delta = sum_r w_r x_r - mean_r(x_r)
    v <- beta v + (1 - beta) Delta
    base <- base (1 - gamma) + lambda v

    Args:
        base: The base value, or its log where the hyperparameter's scale is logarithmic.
        velocity: v so far.
        values: x_r, on the same scale as ``base``, of the replicas that count.
        weights: w_r of those replicas, summing to 1.
        momentum: beta.
        step_size: lambda.
        decay: gamma.
    """
    mean = math.fsum(values) / len(values)
    delta = math.fsum(w * x for w, x in zip(weights, values, strict=True)) - mean
    velocity = momentum * velocity + (1 - momentum) * delta
    return Follower(base=base * (1 - decay) + step_size * velocity, velocity=velocity, delta=delta)


def decay_per_round(floor: float, warm: float, rounds: float) -> float:
    """gamma: the decay a round that takes ``warm`` to ``floor`` in ``rounds`` rounds (HDET, eq. 9).

    gamma = 1 - (floor / warm)^(1/K)

    The paper writes gamma from one-cycle's factors; with torch's defaults that is negative. Its stated
    purpose, to end at one-cycle's floor, is the definition here.
    """
    left: float = (floor / warm) ** (1 / rounds)
    return 1 - left
