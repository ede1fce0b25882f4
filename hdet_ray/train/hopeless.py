"""Errors that come again however often workers are started: the run ends with the first of them.

Ray counts every worker's error against ``max_failures`` and starts the group again; with -1 it would do so
for ever over a setting that can't work.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ray.train import UserCallback

from hdet_ray.exceptions import (
    CheckpointError,
    ConfigError,
    FencedError,
    HDETError,
    RollbackLimitError,
    SearchError,
)
from hdet_ray.train.failures import own_error
from hdet_ray.train.outcomes import DriverExit

HOPELESS: Mapping[type[HDETError], DriverExit] = {
    SearchError: DriverExit.SEARCH_FAILED,
    RollbackLimitError: DriverExit.ROLLBACK_LIMIT,
    CheckpointError: DriverExit.CHECKPOINT_ERROR,
    ConfigError: DriverExit.ENTRYPOINT_ERROR,
    FencedError: DriverExit.FENCED,
}
"""The errors, and how a driver ends with each."""


class EndsHopelessRuns(UserCallback):
    """Lives in Ray's controller, which ends a run whose callback raises."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called by Ray with what each worker raised.

        Raises:
            HDETError: one of them that trying again can't help.
        """
        error = hopeless_among(worker_exceptions.values())
        if error is not None:
            raise error


def hopeless_among(errors: Iterable[BaseException]) -> HDETError | None:
    """The first that trying again can't help, as it was raised; Ray wraps what workers raise."""
    own = (own_error(error) for error in errors)
    return next((error for error in own if isinstance(error, tuple(HOPELESS))), None)


def end_of(error: BaseException) -> DriverExit | None:
    """How a driver ends that an error has ended, where it is a hopeless one."""
    return next((end for kind, end in HOPELESS.items() if isinstance(error, kind)), None)
