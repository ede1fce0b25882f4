"""What becomes of a job's group of workers, told to the controller from where Ray steers it.

Ray restarts a group by itself, which takes a while, and waits without a word where the cluster has no room.
These callbacks live in the process that does so; a job's state follows from what they tell.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.train import UserCallback
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import (
    InitializingState,
    PreemptingState,
    ReschedulingState,
    ResizingState,
    RestartingState,
    RunningState,
)

from hdet_ray.train.failures import last_line
from hdet_ray.train.hopeless import hopeless_among
from hdet_ray.train.notes import Notes

PATIENCE_S = 5.0
"""A group that is not begun within this time waits for resources."""
LONG_S = 30.0
"""By then it is said even where enough seems free: on no single node, or only in Ray's stale view."""
_PAUSE_S = 5.0
"""Between two looks at the cluster."""
_TELL_S = 10.0


def in_thread(act: Callable[[], object]) -> None:
    """Neither a restart of the workers nor Ray's own look at them must wait for a note."""
    threading.Thread(target=act, daemon=True).start()


class LossNotes(UserCallback):
    """Tells at once that workers were lost, once for each group: Ray looks at it until all of it has ended.

    Args:
        notes: Of the job.
        post: Has something done without waiting for it.
    """

    def __init__(self, notes: Notes, post: Callable[[Callable[[], object]], None] = in_thread) -> None:
        self._notes = notes
        self._post = post
        self._is_told = False
        self.is_announced = False
        """A node of the group is being taken away: Ray counts its loss as no failure."""

    def group_trains(self) -> None:
        """What follows is another group's."""
        self._is_told = self.is_announced = False

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called by Ray with what each worker raised."""
        if self._is_told or hopeless_among(worker_exceptions.values()) is not None:
            return  # where it is hopeless, no group follows: the run ends, and its driver says why
        self._is_told = True
        ranks = sorted(worker_exceptions)
        cause = last_line(worker_exceptions[ranks[0]]) if ranks else "unknown"
        data = {
            "ranks": ranks[:100],
            "message": f"{len(ranks)} of the workers failed: {cause}"[:2000],
            "is_preemption": self.is_announced,
            "at_s": time.time(),
        }
        self._post(lambda: self._notes.tell("lost", data, patience_s=_TELL_S))


class StandingNotes(ControllerCallback):
    """Tells why no group trains: a node that is taken away, a change of size, no room in the cluster.

    Args:
        notes: Of the job.
        losses: What tells of lost workers: it is told here which group they are of.
        min_workers: With fewer the run waits.
        per_worker: What each worker takes, by resource.
        look: What the cluster has free and in all, by resource.
        clock: Seconds, monotonic.
        post: Has something done without waiting for it.
    """

    def __init__(
        self,
        notes: Notes,
        losses: LossNotes,
        *,
        min_workers: int,
        per_worker: Mapping[str, float],
        look: Callable[[], tuple[Mapping[str, float], Mapping[str, float]]] | None = None,
        clock: Callable[[], float] = time.monotonic,
        post: Callable[[Callable[[], object]], None] = in_thread,
    ) -> None:
        self._notes = notes
        self._losses = losses
        self._min_workers = min_workers
        self._per_worker = dict(per_worker)
        self._look = look or free_and_total
        self._clock = clock
        self._post = post
        self._idle_since_s: float | None = None
        """Since when no group has been begun."""
        self._next_look_s = 0.0
        self._told: Mapping[str, Any] | None = None

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Called by Ray at every turn of its loop, also where nothing has changed."""
        now = self._clock()
        if isinstance(current_state, RunningState):
            self._idle_since_s = self._told = None
            if not isinstance(previous_state, RunningState):
                self._losses.group_trains()
        elif isinstance(current_state, PreemptingState):
            if not isinstance(previous_state, PreemptingState):
                self._losses.is_announced = True
                self._tell("preempted", {"ranks": current_state.preemption_info.preempted_ranks[:100]})
        elif isinstance(current_state, ResizingState):
            self._tell("resizing", {"workers": current_state.scaling_decision.num_workers})
        elif isinstance(current_state, InitializingState | RestartingState | ReschedulingState):
            if self._idle_since_s is None:
                self._idle_since_s = now
            # Rescheduling: a group was begun, and what it needs did not come in time.
            has_waited = now - self._idle_since_s >= PATIENCE_S
            if (has_waited or isinstance(current_state, ReschedulingState)) and now >= self._next_look_s:
                self._next_look_s = now + _PAUSE_S
                at_s, is_long = time.time(), now - self._idle_since_s >= LONG_S
                self._post(lambda: self._tell_waiting(at_s, is_long=is_long))

    def _tell(self, kind: str, data: Mapping[str, Any]) -> None:
        told = {**data, "at_s": time.time()}
        self._post(lambda: self._notes.tell(kind, told, patience_s=_TELL_S))

    def _tell_waiting(self, at_s: float, *, is_long: bool) -> None:
        """Say what is missing, once for each number that changes."""
        free, total = self._look()
        needs = self._per_worker
        has_room = all(free.get(name, 0.0) >= self._min_workers * amount for name, amount in needs.items())
        if has_room and not is_long:
            return
        data = {
            "min_workers": self._min_workers,
            "per_worker": needs,
            "free": {name: free.get(name, 0.0) for name in needs},
            "total": {name: total.get(name, 0.0) for name in needs},
        }
        if data != self._told and self._notes.tell("waiting", {**data, "at_s": at_s}, patience_s=_TELL_S):
            self._told = data


def free_and_total() -> tuple[Mapping[str, float], Mapping[str, float]]:
    """The cluster's resources as Ray sees them now: a lost node's may stay in it for some seconds."""
    return ray.available_resources(), ray.cluster_resources()  # type: ignore[no-untyped-call]
