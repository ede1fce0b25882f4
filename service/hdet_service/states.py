"""States of a job, the closed list of reasons, and which state may follow which. Pure."""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Where a job stands."""

    QUEUED = "QUEUED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    DEGRADED = "DEGRADED"
    """Trains with fewer replicas than were asked for."""
    STOPPING = "STOPPING"
    PAUSED = "PAUSED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELED = "CANCELED"


class Reason(StrEnum):
    """Why a job stands there."""

    SUBMITTED = "Submitted"
    WAITING_FOR_SLOT = "WaitingForSlot"
    WAITING_FOR_RESOURCES = "WaitingForResources"
    STARTING = "Starting"
    RUNNING = "Running"
    REPLICA_LOST = "ReplicaLost"
    PREEMPTED = "Preempted"
    RESIZING = "Resizing"
    PAUSING = "Pausing"
    PAUSED = "Paused"
    CANCELING = "Canceling"
    CANCELED = "Canceled"
    NON_FINITE = "NonFinite"
    ROLLBACK_LIMIT = "RollbackLimit"
    SEARCH_FAILED = "SearchFailed"
    ENTRYPOINT_ERROR = "EntrypointError"
    DRIVER_LOST = "DriverLost"
    HEAD_LOST = "HeadLost"
    RETRIES_EXHAUSTED = "RetriesExhausted"
    CHECKPOINT_ERROR = "CheckpointError"
    COMPLETED = "Completed"


TERMINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELED})
"""A job never leaves these."""

ACTIVE = frozenset({State.STARTING, State.RUNNING, State.DEGRADED, State.STOPPING})
"""States in which a driver may run: they take a slot."""

_NEXT: dict[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.STARTING, State.PAUSED, State.CANCELED, State.FAILED}),
    State.STARTING: frozenset(
        {State.RUNNING, State.DEGRADED, State.STOPPING, State.QUEUED, State.SUCCEEDED, State.FAILED}
    ),
    State.RUNNING: frozenset(
        {State.DEGRADED, State.STARTING, State.STOPPING, State.QUEUED, State.SUCCEEDED, State.FAILED}
    ),
    State.DEGRADED: frozenset(
        {State.RUNNING, State.STARTING, State.STOPPING, State.QUEUED, State.SUCCEEDED, State.FAILED}
    ),
    State.STOPPING: frozenset({State.PAUSED, State.CANCELED, State.QUEUED, State.SUCCEEDED, State.FAILED}),
    State.PAUSED: frozenset({State.QUEUED, State.CANCELED}),
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELED: frozenset(),
}


def may_follow(state: State, following: State) -> bool:
    """Whether a job in ``state`` may enter ``following``; staying where it is (new reason) is allowed."""
    return (state is following and state not in TERMINAL) or following in _NEXT[state]
