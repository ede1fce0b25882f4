"""Errors that come again however often workers are started: the run ends with the first of them.

Ray counts every worker's error against ``max_failures`` and starts the group again; with -1 it would do so
for ever over a setting that can't work.
"""

from __future__ import annotations

from typing import Any

from ray.train import UserCallback

from hdet_ray.train.failures import own_error
from hdet_ray.train.notes import HOPELESS


class EndsHopelessRuns(UserCallback):
    """Lives in Ray's controller, which ends a run whose callback raises."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called by Ray with what each worker raised.

        Raises:
            HDETError: one of them that trying again can't help.
        """
        for error in worker_exceptions.values():
            own = own_error(error)
            if own is not None and isinstance(own, tuple(HOPELESS)):
                raise own
