"""How a job's driver ends: the exit codes that say why, for when nobody listened to its last note.

The controller reads them off Ray's list of jobs. Standard library only.
"""

from __future__ import annotations

from enum import IntEnum


class DriverExit(IntEnum):
    """Exit codes of ``python -m hdet_ray.train.driver``; any other one means that it was lost."""

    COMPLETED = 0
    """Also after a pause: the controller knows which from the steps."""
    ENTRYPOINT_ERROR = 91
    """The entrypoint can't be imported or called, or a setting of it can't work."""
    SEARCH_FAILED = 92
    ROLLBACK_LIMIT = 93
    CHECKPOINT_ERROR = 94
    NON_FINITE = 95
    RETRIES_EXHAUSTED = 96
    """Workers failed more often than ``max_failures`` allows."""
    FENCED = 97
    """Another attempt of the run has begun elsewhere: whoever started that goes on with it."""

    @property
    def reason(self) -> str:
        """The job's reason, in the service's words."""
        return REASONS[self]


REASONS: dict[DriverExit, str] = {
    DriverExit.COMPLETED: "Completed",
    DriverExit.ENTRYPOINT_ERROR: "EntrypointError",
    DriverExit.SEARCH_FAILED: "SearchFailed",
    DriverExit.ROLLBACK_LIMIT: "RollbackLimit",
    DriverExit.CHECKPOINT_ERROR: "CheckpointError",
    DriverExit.NON_FINITE: "NonFinite",
    DriverExit.RETRIES_EXHAUSTED: "RetriesExhausted",
    DriverExit.FENCED: "DriverLost",
}

FINAL = frozenset(DriverExit) - {DriverExit.COMPLETED, DriverExit.FENCED}
"""Ends that another driver would only repeat."""
