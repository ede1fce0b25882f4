"""Admission: who starts next. Pure.

Priority, then first come (ids sort by creation), at most so many at a time. Resources are Ray's to find, so
that its autoscaler sees the demand.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A job in the queue."""

    id: str
    priority: int
    not_before_s: float | None
    """A retry waits until then."""


def in_order(queue: Iterable[Waiting]) -> list[Waiting]:
    """The queue as it is served: higher priority first, then the older id."""
    return sorted(queue, key=lambda job: (-job.priority, job.id))


def admitted(
    queue: Iterable[Waiting],
    *,
    num_running: int,
    max_running: int,
    now_s: float,
    max_delay_s: float,
    is_draining: bool,
) -> list[str]:
    """Ids that get a slot now, in order. A retry that still waits is passed over, not waited for.

    Args:
        queue: Jobs that wait, in any order.
        num_running: Slots that are taken.
        max_running: Slots that there are.
        now_s: Seconds since the epoch.
        max_delay_s: No retry waits longer than this: one that seems to was set before the clock went back.
        is_draining: Nothing is admitted.
    """
    if is_draining:
        return []
    free = max(0, max_running - num_running)
    return [job.id for job in in_order(queue) if _is_due(job, now_s, max_delay_s)][:free]


def position(queue: Sequence[Waiting], *, priority: int) -> int:
    """How many would start before a job of this priority that is submitted now."""
    return sum(job.priority >= priority for job in queue)


def _is_due(job: Waiting, now_s: float, max_delay_s: float) -> bool:
    return job.not_before_s is None or not now_s < job.not_before_s <= now_s + max_delay_s
