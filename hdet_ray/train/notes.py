"""Notes: what a job's driver and workers tell the controller besides rounds.

A note that nobody takes is said again for a while: the controller may be starting anew. It never holds a run
up for longer than that, and never fails one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from hdet_ray.train.failures import last_line
from hdet_ray.train.protocol import NoteRequest, request_to_json
from hdet_ray.train.settings import JobSettings

logger = logging.getLogger(__name__)

_CALL_TIMEOUT_S = 5.0
_PAUSE_S = 0.5


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
