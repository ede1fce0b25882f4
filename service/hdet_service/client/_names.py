"""What a text that names a job stands for, and other small readings of answers. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from hdet_service.client._errors import AmbiguousJob, NotFound, Problem
from hdet_service.client._types import Checkpoint, Job

TERMINAL_STATES = frozenset({"SUCCEEDED", "FAILED", "CANCELED"})
"""A job never leaves these."""

MIN_PREFIX = 6
"""A shorter start of an id is no name for a job: one character less typed would be another job."""

_JOB_ID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}", re.IGNORECASE)


def is_job_id(text: str) -> bool:
    """Whether a text has the form of a whole id (a ULID)."""
    return _JOB_ID.fullmatch(text) is not None


def is_over(job: Job) -> bool:
    """Whether a job has ended."""
    return job["state"] in TERMINAL_STATES


def matches(text: str, job: Job) -> bool:
    """Whether a text may stand for a job: its name, or a start of its id."""
    is_start = len(text) >= MIN_PREFIX and job["id"].startswith(text.upper())
    return is_start or job["name"] == text


def only_match(text: str, found: Sequence[Job]) -> Job:
    """The one job of those that match.

    Raises:
        AmbiguousJob: there are several.
        NotFound: there is none.
    """
    if not found:
        detail = (
            f"no job that this token may read has the id or name {text!r}, or an id that starts with it "
            f"({MIN_PREFIX} characters or more); `hdet jobs list` shows them"
        )
        raise NotFound(
            Problem(status=404, type="urn:hdet:problem:not-found", title="No such job", detail=detail)
        )
    if len(found) > 1:
        raise AmbiguousJob(
            f"{text!r} stands for {len(found)} jobs; name one by its id",
            [(job["id"], job["name"], job["state"]) for job in found],
        )
    return found[0]


def newest_round(job_id: str, checkpoints: Sequence[Checkpoint]) -> int:
    """The round of the newest checkpoint.

    Raises:
        NotFound: there is none.
    """
    if not checkpoints:
        detail = f"job {job_id} has no checkpoint yet; it gets one at a round's end"
        raise NotFound(
            Problem(status=404, type="urn:hdet:problem:not-found", title="No checkpoint", detail=detail)
        )
    newest: Any = max(checkpoints, key=lambda c: (c["attempt"], c["round"]))
    return int(newest["round"])
