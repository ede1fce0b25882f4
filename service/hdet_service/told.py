"""What a driver's or a worker's word means for its job, as the step that follows. Nothing is written here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hdet_ray.train.outcomes import REASONS, DriverExit
from hdet_service.reconcile import Ending, Outcome, Step
from hdet_service.states import Reason, State
from hdet_service.store.models import Job

_FAILURES = frozenset(REASONS.values()) - {REASONS[DriverExit.COMPLETED]}
"""Reasons with which our own driver ends for good."""


def lost(job: Job, state: State, message: str) -> Step | None:
    """Ray restarts the group by itself as long as ``max_failures`` lets it."""
    text = f"{message or 'workers were lost'}; the group starts anew from the newest checkpoint"
    if state in (State.RUNNING, State.DEGRADED):
        state, reason = State.DEGRADED, Reason.REPLICA_LOST
    elif state is State.STARTING:
        reason = Reason.WAITING_FOR_RESOURCES
    else:
        return None
    return Step(state=state, reason=reason, message=text, failures=job.failures + 1)


def trains(job: Job, message: str, replicas: int) -> Step | None:
    """A group trains. With fewer replicas than asked for it is degraded, until a larger group begins."""
    state, wanted = State(job.state), int(job.spec["replicas"]["max"])
    if state not in (State.STARTING, State.RUNNING, State.DEGRADED):
        return None
    if 0 < replicas < wanted:
        was_lost = Reason(job.reason) is Reason.REPLICA_LOST
        return Step(
            state=State.DEGRADED,
            reason=Reason.REPLICA_LOST if was_lost else Reason.RESIZING,
            message=f"{replicas} of {wanted} replicas train. {message}",
            replicas=replicas,
        )
    if state is State.RUNNING:
        return None
    return Step(state=State.RUNNING, reason=Reason.RUNNING, message=message)


def last_word(data: Mapping[str, Any]) -> Outcome:
    """A driver's last word. One that can't be read counts as a lost driver, never as a success."""
    told = (data.get("outcome"), data.get("reason"), str(data.get("message", ""))[:2000])
    match told:
        case ("succeeded", _, message):
            return Outcome(ending=Ending.COMPLETED, reason=Reason.COMPLETED, message=message)
        case ("failed", reason, message) if reason in _FAILURES:
            return Outcome(ending=Ending.FAILED, reason=Reason(reason), message=message)
        case (_, _, message):
            return Outcome(ending=Ending.LOST, reason=Reason.DRIVER_LOST, message=message)
