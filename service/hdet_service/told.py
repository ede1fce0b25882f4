"""What a driver's or a worker's word means for its job, as the step that follows. Nothing is written here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hdet_ray.train.outcomes import FINAL, REASONS
from hdet_service.reconcile import Ending, Outcome, Step
from hdet_service.states import Reason, State
from hdet_service.store.models import Job

_FAILURES = frozenset(REASONS[end] for end in FINAL)
"""Reasons with which our own driver ends for good."""

_LOSSES = (Reason.REPLICA_LOST, Reason.PREEMPTED)


def lost(job: Job, state: State, message: str, *, is_preemption: bool) -> Step | None:
    """Ray restarts the group by itself as long as ``max_failures`` lets it.

    A node that had said that it would go is no failure, to Ray and to us.
    """
    text = f"{message or 'workers were lost'}; the group starts anew from the newest checkpoint"
    if state in (State.RUNNING, State.DEGRADED):
        is_announced = is_preemption or Reason(job.reason) is Reason.PREEMPTED
        reason = Reason.PREEMPTED if is_announced else Reason.REPLICA_LOST
        state = State.DEGRADED
    elif state is State.STARTING:
        reason = Reason.REPLICA_LOST
    else:
        return None
    return Step(state=state, reason=reason, message=text, failures=job.failures + (not is_preemption))


def preempted(job: Job, state: State, data: Mapping[str, Any]) -> Step | None:
    """A node says that it will go: the group trains on until it does, and saves at its next boundary."""
    if state not in (State.RUNNING, State.DEGRADED):
        return None
    ranks = ", ".join(str(rank) for rank in data.get("ranks") or ()) or "unknown"
    return Step(
        state=State.DEGRADED,
        reason=Reason.PREEMPTED,
        message=f"Nodes with ranks {ranks} are being taken away; it saves at the next boundary",
        replicas=job.replicas_present,
    )


def resizes(job: Job, state: State, data: Mapping[str, Any]) -> Step | None:
    """Ray has found room for another size, and starts the group anew with it."""
    if state not in (State.RUNNING, State.DEGRADED):
        return None
    replicas = int(data.get("workers") or 0) // int(job.spec["replicas"]["ranks_per_replica"])
    return Step(
        state=State.DEGRADED,
        reason=Reason.RESIZING,
        message=f"The group starts anew with {replicas} replicas, from the newest checkpoint",
    )


def waits(job: Job, state: State, data: Mapping[str, Any]) -> Step | None:
    """No group can be begun: too little is free for the smallest one."""
    if state not in (State.STARTING, State.RUNNING, State.DEGRADED):
        return None
    needs = _needs(data)
    message = f"{needs} {_offers(data)}"
    if (state, job.reason) == (State.STARTING, Reason.WAITING_FOR_RESOURCES):
        if job.message == message:
            return None
        if job.message.startswith(needs):  # what is free changes every few seconds
            return Step(message=message, only_message=True)
    return Step(state=State.STARTING, reason=Reason.WAITING_FOR_RESOURCES, message=message)


def _needs(data: Mapping[str, Any]) -> str:
    count = int(data.get("min_workers") or 1)
    each = " and ".join(f"{amount:g} {name}" for name, amount in dict(data.get("per_worker") or {}).items())
    return f"It needs at least {count} worker{'' if count == 1 else 's'} with {each or 'nothing'} each."


def _offers(data: Mapping[str, Any]) -> str:
    total = dict(data.get("total") or {})
    free = [
        f"{amount:g} of {total.get(name, 0):g} {name}"
        for name, amount in dict(data.get("free") or {}).items()
    ]
    return f"Free in the cluster: {', '.join(free) or 'unknown'}; it starts by itself once there is room."


def trains(job: Job, message: str, replicas: int) -> Step | None:
    """A group trains. With fewer replicas than asked for it is degraded, until a larger group begins."""
    state, wanted = State(job.state), int(job.spec["replicas"]["max"])
    if state not in (State.STARTING, State.RUNNING, State.DEGRADED):
        return None
    if 0 < replicas < wanted:
        before, said = Reason(job.reason), f"{replicas} of {wanted} replicas train."
        if state is State.DEGRADED and job.message.startswith(said):
            return None  # the group's first report says what its beginning has said
        return Step(
            state=State.DEGRADED,
            reason=before if before in _LOSSES else Reason.RESIZING,
            message=f"{said} {message}",
            replicas=replicas,
        )
    if state is State.RUNNING:
        return None
    return Step(state=State.RUNNING, reason=Reason.RUNNING, message=message, replicas=replicas)


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
