"""Notes: what a job's driver and workers tell the controller besides rounds.

A note that nobody takes is said again for a while: the controller may be starting anew. It never holds a run
up for longer than that, and never fails one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train import UserCallback

from hdet_ray.exceptions import CheckpointError, ConfigError, HDETError, RollbackLimitError, SearchError
from hdet_ray.train.failures import last_line
from hdet_ray.train.outcomes import DriverExit
from hdet_ray.train.protocol import NoteRequest, request_to_json
from hdet_ray.train.settings import JobSettings

logger = logging.getLogger(__name__)

_CALL_TIMEOUT_S = 5.0
_PAUSE_S = 0.5

HOPELESS: Mapping[type[HDETError], DriverExit] = {
    SearchError: DriverExit.SEARCH_FAILED,
    RollbackLimitError: DriverExit.ROLLBACK_LIMIT,
    CheckpointError: DriverExit.CHECKPOINT_ERROR,
    ConfigError: DriverExit.ENTRYPOINT_ERROR,
}
"""Errors that come again however often workers are restarted."""


@dataclass(frozen=True, slots=True)
class Notes:
    """Tells the controller of one job."""

    job: JobSettings

    def tell(self, kind: str, data: Mapping[str, Any], *, patience_s: float) -> bool:
        """Say something, again and again until it is taken.

        Args:
            kind: Of the note.
            data: JSON.
            patience_s: After this long it is left unsaid.

        Returns:
            Whether the controller took it.
        """
        note = NoteRequest(job=self.job.job, submission=self.job.submission, kind=kind, data=data)
        until = time.monotonic() + patience_s
        while True:
            try:
                return self._say(note)
            except (RayError, ValueError) as error:  # ValueError: no such actor, for now
                if time.monotonic() + _PAUSE_S >= until:
                    logger.warning("the controller took no note: kind=%s cause=%s", kind, last_line(error))
                    return False
            time.sleep(_PAUSE_S)

    def _say(self, note: NoteRequest) -> bool:
        actor: Any = ray.get_actor(self.job.actor, namespace=self.job.namespace)
        answer: Any = ray.get(actor.call.remote("note", request_to_json(note)), timeout=_CALL_TIMEOUT_S)
        return bool(answer["status"] == "ok")


class LossNotes(UserCallback):
    """Tells at once that workers were lost: Ray restarts the group by itself, which takes a while."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called by Ray, in the process that steers the workers."""
        ranks = sorted(worker_exceptions)
        cause = last_line(worker_exceptions[ranks[0]]) if ranks else "unknown"
        data = {
            "ranks": ranks[:100],
            "message": f"{len(ranks)} of the workers failed: {cause}"[:2000],
            "at_s": time.time(),
        }
        # In a thread: the restart of the workers must not wait for it.
        threading.Thread(
            target=self._notes.tell, args=("lost", data), kwargs={"patience_s": 10.0}, daemon=True
        ).start()


def telling(loop: Callable[..., Any], notes: Notes) -> Callable[..., Any]:
    """A loop that says of errors that come again by themselves that trying again is pointless."""

    def run(*config: Any) -> Any:
        try:
            return loop(*config)
        except tuple(HOPELESS) as error:
            reason = reason_of(error)
            if reason is not None:
                notes.tell("failed", {"reason": reason.reason, "message": last_line(error)}, patience_s=10.0)
            raise

    run.__wrapped__ = loop  # type: ignore[attr-defined]  # Ray reads the signature
    return run


def reason_of(error: BaseException) -> DriverExit | None:
    """Which end an error is, where it is a hopeless one."""
    return next((end for kind, end in HOPELESS.items() if isinstance(error, kind)), None)
