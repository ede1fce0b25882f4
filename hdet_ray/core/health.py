"""Health: the same verdict on every rank, from numbers that the replicas already have.

An unhealthy replica is left out of the average. Where there is nobody to average with, all go back
to the newest boundary. In search rounds only finiteness counts: an unhealthy replica is a dead
candidate, and its weights are put back anyway.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from hdet_ray.config import Thresholds
from hdet_ray.core.plan import Plan
from hdet_ray.core.report import ReplicaReport

_MIN_REPLICAS_FOR_PEERS = 4
_MAD_TO_SIGMA = 1.4826
_NOISE_FLOOR_RATIO = 1e-3
"""A loss that never moves has no noise; a thousandth of it stands in."""
_SURE_STEPS = 20
"""From so few losses on, an estimate of their noise can be trusted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a boundary does with each replica."""

    weights: tuple[float, ...]
    """Weight of each replica in the average: 1 healthy, 0 left out."""
    reasons: tuple[str, ...]
    """Why a replica is unhealthy: ``nonfinite``, ``exploded`` or, healthy, an empty text."""
    rolls_back: bool
    culprits: tuple[int, ...] = ()
    """The replicas that brought a shared round down."""

    @property
    def unhealthy(self) -> tuple[int, ...]:
        """Replicas left out."""
        return tuple(r for r, w in enumerate(self.weights) if w == 0)


def judge(plan: Plan, replicas: Sequence[ReplicaReport], thresholds: Thresholds) -> Verdict:
    """Judge each replica at the end of a round.

    Args:
        plan: The plan that the round followed.
        replicas: One report per replica of the plan.
        thresholds: Scale-free bounds.
    """
    if plan.is_search:
        reasons = ["" if _is_finite(r) else "nonfinite" for r in replicas]
        return _verdict(reasons, rolls_back=False, culprits=())
    doubt = _doubt(plan.num_steps)
    own = [_rise_in_noise(r) / doubt for r in replicas]
    peers = _against_peers([r.last_loss - r.start_loss for r in replicas])
    reasons = [
        _reason(r, own_z, peer_z, thresholds.own_noise_z, thresholds.peer_z)
        for r, own_z, peer_z in zip(replicas, own, peers, strict=True)
    ]
    if plan.is_one_team and plan.num_replicas > 1:
        return _judge_shared(plan, replicas, reasons, own, peers, thresholds)
    if statistics.median_low(own) > thresholds.explosion_z:
        reasons = [reason or "exploded" for reason in reasons]
    return _verdict(reasons, rolls_back=all(reasons), culprits=())


def _judge_shared(
    plan: Plan,
    replicas: Sequence[ReplicaReport],
    reasons: list[str],
    own: Sequence[float],
    peers: Sequence[float],
    thresholds: Thresholds,
) -> Verdict:
    """One team: a gradient is everyone's, so one replica's explosion is the whole round's."""
    exploded = [
        r
        for r, (own_z, peer_z) in enumerate(zip(own, peers, strict=True))
        if reasons[r] == "exploded" and own_z > thresholds.explosion_z and peer_z > thresholds.peer_z
    ]
    if any(not r.is_finite for r in replicas) or all(reasons):
        brought = tuple(r for r, report in enumerate(replicas) if report.brought_nonfinite)
        culprits = brought or tuple(r for r, reason in enumerate(reasons) if reason)
        return _verdict([r or "nonfinite" for r in reasons], rolls_back=True, culprits=culprits)
    if exploded:
        return _verdict([r or "exploded" for r in reasons], rolls_back=True, culprits=tuple(exploded))
    if statistics.median_low(own) > thresholds.explosion_z:
        return _verdict([r or "exploded" for r in reasons], rolls_back=True, culprits=())
    if plan.keeps_replicas_equal:
        return _verdict([""] * len(reasons), rolls_back=False, culprits=())
    return _verdict(reasons, rolls_back=all(reasons), culprits=())


def _verdict(reasons: Sequence[str], *, rolls_back: bool, culprits: tuple[int, ...]) -> Verdict:
    return Verdict(
        weights=tuple(0.0 if reason else 1.0 for reason in reasons),
        reasons=tuple(reasons),
        rolls_back=rolls_back,
        culprits=culprits,
    )


def _reason(report: ReplicaReport, own_z: float, peer_z: float, own_limit: float, peer_limit: float) -> str:
    if not _is_finite(report):
        return "nonfinite"
    return "exploded" if own_z > own_limit and peer_z > peer_limit else ""


def _is_finite(report: ReplicaReport) -> bool:
    if not report.has_loss:
        return report.is_finite
    return report.is_finite and math.isfinite(report.loss) and math.isfinite(report.last_loss)


def _rise_in_noise(report: ReplicaReport) -> float:
    """Rise of the loss over the window, in the replica's own noise from batch to batch."""
    if not report.has_loss:
        return 0.0
    rise = report.last_loss - report.start_loss
    if not math.isfinite(rise):
        return math.inf
    noise = report.noise if math.isfinite(report.noise) else 0.0
    return rise / max(noise, _NOISE_FLOOR_RATIO * abs(report.start_loss), math.ulp(1.0))


def _doubt(num_steps: int) -> float:
    """Factor on the noise of a short window, whose median of a few steps is near zero by chance.

    Chosen on windows of Gaussian noise: fewer than one false alarm in 100,000 from 4 losses on.
    """
    return max(1.0, (_SURE_STEPS / max(num_steps, 1)) ** 3)


def _against_peers(rises: Sequence[float]) -> list[float]:
    """Robust z-score of each rise among all; infinite where there are too few to compare with."""
    if len(rises) < _MIN_REPLICAS_FOR_PEERS:
        return [math.inf] * len(rises)
    known = [r for r in rises if math.isfinite(r)]
    if not known:
        return [math.inf] * len(rises)
    middle = statistics.median(known)
    spread = _MAD_TO_SIGMA * statistics.median(abs(r - middle) for r in known)
    floor = max(spread, _NOISE_FLOOR_RATIO * max(abs(middle), math.ulp(1.0)))
    return [(r - middle) / floor if math.isfinite(r) else math.inf for r in rises]
