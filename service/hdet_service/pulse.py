"""The pulse of runs: when each reported last, and how far apart reports usually are. Kept in memory only.

After a restart of the controller it starts empty: then nobody is called silent before there were two reports.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(slots=True)
class _Beat:
    last_s: float
    usual_round_s: float | None = None
    opened_s: float = 0.0
    """When its newest attempt began."""
    lost_attempt: int = 0
    """Reports of this attempt and of older ones prove nothing any more: its group is gone."""
    is_settled: bool = False
    """The job is known to be RUNNING: a report changes nothing."""


class Pulse:
    """Of all runs.

    Args:
        started_s: When this controller started: silence before that was its own.
    """

    def __init__(self, started_s: float) -> None:
        self._started_s = started_s
        self._beats: dict[str, _Beat] = {}
        self._losses: dict[str, tuple[int, float]] = {}
        """The newest loss that each was told, by which driver and when: said twice, it counts once."""

    def opened(self, job_id: str, now_s: float) -> None:
        """A new attempt has begun."""
        lost = self._beats[job_id].lost_attempt if job_id in self._beats else 0
        self._beats[job_id] = _Beat(last_s=now_s, opened_s=now_s, lost_attempt=lost)

    def reported(self, job_id: str, attempt: int, now_s: float) -> bool:
        """Note a report; whether the job's state has to follow it."""
        beat = self._beats.get(job_id)
        if beat is None:
            self._beats[job_id] = _Beat(last_s=now_s)
            return True
        taken_s = max(0.0, now_s - beat.last_s)
        usual_s = beat.usual_round_s
        beat.usual_round_s = taken_s if usual_s is None else 0.8 * usual_s + 0.2 * taken_s
        beat.last_s = now_s
        return not beat.is_settled and attempt > beat.lost_attempt

    def lost(self, job_id: str, attempt: int) -> None:
        """Its group is gone; the next attempt opens anew."""
        beat = self._beats.setdefault(job_id, _Beat(last_s=self._started_s))
        beat.lost_attempt, beat.is_settled = attempt, False

    def is_new_loss(self, job_id: str, submission: int, at_s: float) -> bool:
        """Note a loss that a driver told; whether it had not been told before. Without a time it is new."""
        loss = (submission, at_s)
        is_new = math.isinf(at_s) or self._losses.get(job_id) != loss
        self._losses[job_id] = loss
        return is_new

    def unlearn_loss(self, job_id: str) -> None:
        """The newest loss has come to nothing: told again, it is new."""
        self._losses.pop(job_id, None)

    def has_opened_since(self, job_id: str, at_s: float) -> bool:
        """Whether an attempt has begun after that moment."""
        beat = self._beats.get(job_id)
        return beat is not None and beat.opened_s > at_s

    def settled(self, job_id: str) -> None:
        """The job's state follows its reports."""
        if job_id in self._beats:
            self._beats[job_id].is_settled = True

    def silent(self, job_id: str) -> None:
        """It was called silent: the next report says otherwise."""
        if job_id in self._beats:
            self._beats[job_id].is_settled = False

    def last_report_s(self, job_id: str, stored_s: float | None) -> float | None:
        """Newest report, or this controller's start if that is later; None where none ever came."""
        beat = self._beats.get(job_id)
        if beat is not None:
            return max(beat.last_s, self._started_s)
        return None if stored_s is None else max(stored_s, self._started_s)

    def usual_round_s(self, job_id: str) -> float | None:
        """Smoothed seconds between reports; None before the second one."""
        beat = self._beats.get(job_id)
        return None if beat is None else beat.usual_round_s

    def forget(self, job_id: str) -> None:
        """The job has ended."""
        self._beats.pop(job_id, None)
        self._losses.pop(job_id, None)
