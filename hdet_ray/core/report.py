"""What the replicas tell at the end of a round: the whole of what `decide` learns from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hdet_ray.core.codec import HParamKey
from hdet_ray.core.overrides import Freeze, Override, Removal, SetBounds


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaReport:
    """One replica's round; losses are means over its ranks, in units of the user's loss."""

    loss: float
    """Mean training loss over the window."""
    tail_loss: float
    """Mean training loss over the window's last quarter."""
    start_loss: float
    """Median training loss over the window's first quarter (at least one batch)."""
    last_loss: float
    """Training loss of the window's last batch."""
    noise: float
    """Robust standard deviation of the loss from batch to batch."""
    is_finite: bool
    """Its parameters are finite."""
    has_loss: bool = True
    """The user's loop passes its loss; without, the losses here are no numbers and nothing reads them."""
    brought_nonfinite: bool = False
    """This replica's own gradient, before it was shared, was not finite at some step of the round."""
    probe_loss: float | None = None
    """Mean probe loss, where the plan asked for one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundReport:
    """The report of one round."""

    round: int
    calls: int
    """Calls of the scheduler's ``step``: the plan's number of steps."""
    steps: int
    """Steps by which the schedule moved: fewer than calls where all replicas skipped (GradScaler)."""
    plan_digest: str
    """Digest of the plan that this round followed."""
    replicas: tuple[ReplicaReport, ...]
    untrained_loss: float | None = None
    """Loss of the untrained weights on this stage's samples; in the first round of a stage of the search."""
    external_rates: Mapping[HParamKey, float] = field(default_factory=dict)
    """The base scheduler's rates at the end of the round, where the base is not one-cycle."""
    commands: tuple[Override | Removal | Freeze | SetBounds, ...] = ()
    """What operators asked for since the last round, in order."""
    next_num_replicas: int | None = None
    """Replicas of the next round, where that changes."""
    facts: Mapping[str, float] = field(default_factory=dict)
    """Measurements for people: no decision reads them.

    ``wall_s`` (training), ``sync_s`` (judging's end to the report), ``sync_bytes`` (of an average, this
    rank's), ``param_divergence_ratio`` (of rounds that end in an average: the largest distance of an averaged
    replica's parameters from the mean, over the mean's norm), and where samples are counted ``samples``
    (of all ranks), ``samples/0``, ``samples/1``, … (of each replica's ranks) and ``samples_total`` (of all
    ranks since step 0, without what a restart made undone).
    """
