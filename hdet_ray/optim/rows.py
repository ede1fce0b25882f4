"""Rows: what ranks tell each other at a boundary, as a few floats, and a replica's report from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass

from hdet_ray.core.report import ReplicaReport


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthRow:
    """One rank's window and health; every field is a float so that a row is one small tensor."""

    has_loss: float
    mean: float
    tail: float
    start: float
    last: float
    noise: float
    first: float
    is_finite: float
    first_nonfinite: float
    """Buckets of gradients before this rank's first that was not finite; infinite if all were."""
    skips: float
    """Steps that this rank's optimizer skipped."""
    averaged_tensors: float
    """Tensors that this rank would put into an average: as many on every rank."""
    moments: float
    """Digest of this rank's optimizer state, where ranks that share gradients may hold the same."""
    samples: float
    """Training samples that this rank took in the round; not a number where nothing counts them."""

    def as_list(self) -> list[float]:
        """The row as it travels."""
        return [float(x) for x in astuple(self)]

    @classmethod
    def from_list(cls, row: Sequence[float]) -> HealthRow:
        """The row as it arrived."""
        return cls(**dict(zip(cls.__dataclass_fields__, row, strict=True)))


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeRow:
    """One rank's probe losses."""

    loss: float
    untrained: float
    has_failed: float

    def as_list(self) -> list[float]:
        """The row as it travels."""
        return [float(x) for x in astuple(self)]

    @classmethod
    def from_list(cls, row: Sequence[float]) -> ProbeRow:
        """The row as it arrived."""
        return cls(**dict(zip(cls.__dataclass_fields__, row, strict=True)))


def replica_reports(rows: Sequence[HealthRow], ranks_per_replica: int) -> list[ReplicaReport]:
    """Means over each replica's ranks; a replica is as healthy as its worst rank.

    Only who was first brought a gradient that is not finite: where it is shared, the others' follow from it.
    """
    earliest = min(r.first_nonfinite for r in rows)
    return [
        _replica_report(rows[i : i + ranks_per_replica], earliest)
        for i in range(0, len(rows), ranks_per_replica)
    ]


def replica_means(values: Sequence[float], ranks_per_replica: int) -> list[float]:
    """One mean per replica of one value per rank."""
    return [_mean(values[i : i + ranks_per_replica]) for i in range(0, len(values), ranks_per_replica)]


def sample_facts(rows: Sequence[HealthRow], ranks_per_replica: int) -> dict[str, float]:
    """The round's samples, of all ranks and of each replica's; none where a rank doesn't count its own."""
    taken = [row.samples for row in rows]
    if not all(map(math.isfinite, taken)):
        return {}
    replicas = [sum(taken[i : i + ranks_per_replica]) for i in range(0, len(taken), ranks_per_replica)]
    return {"samples": sum(taken), **{f"samples/{replica}": own for replica, own in enumerate(replicas)}}


def _replica_report(rows: Sequence[HealthRow], earliest: float) -> ReplicaReport:
    return ReplicaReport(
        loss=_mean([r.mean for r in rows]),
        tail_loss=_mean([r.tail for r in rows]),
        start_loss=_mean([r.start for r in rows]),
        last_loss=_mean([r.last for r in rows]),
        noise=_mean([r.noise for r in rows]) / math.sqrt(len(rows)),
        is_finite=all(r.is_finite for r in rows),
        has_loss=all(r.has_loss for r in rows),
        brought_nonfinite=any(r.first_nonfinite == earliest < math.inf for r in rows),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
