"""A job's ledger over the API, as the same rounds that a ledger file holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hdet_ray.core.codec import from_json
from hdet_ray.core.replay import Ledger, LedgerItem, read_ledger
from hdet_ray.core.state import ScheduleState, state_from_json
from hdet_ray.exceptions import ConfigError, HDETError, LedgerError

if TYPE_CHECKING:
    from hdet_service.client import HDETClient

_ITEM_FIELDS = ("attempt", "round", "report", "plan", "report_digest")


def names_a_file(text: str) -> bool:
    """Whether an argument means a file, not a job: it has a slash or a ledger's ending, or is there."""
    return "/" in text or text.endswith((".jsonl", ".json")) or Path(text).is_file()


def existing_file(text: str) -> Path:
    """The file that an argument names.

    Raises:
        ConfigError: there is none.
    """
    path = Path(text)
    if not path.is_file():
        raise ConfigError(f"{text} is no file; give a ledger (JSON lines), or a job's id or name")
    return path


@dataclass(frozen=True, slots=True, kw_only=True)
class JobLedger:
    """A job's ledger that was read."""

    job_id: str
    name: str
    ledger: Ledger


def read_job_ledger(client: HDETClient, text: str) -> JobLedger:
    """The whole ledger of a job.

    Args:
        text: The job's id, start of it, or name.

    Raises:
        LedgerError: it holds no state yet, or a line is broken.
    """
    job = client.find_job(text)
    start = next(client.history_pages(job["id"], page_size=1)).get("start")
    if start is None:
        raise LedgerError(
            f"job {job['name']!r} has no ledger yet: its processes have not opened the run; let it start"
        )
    # What was thinned lies before the start: summaries, which nothing can be decided from.
    items = client.history(job["id"], from_round=state_from_json(start).round)
    lines = [json.dumps(start), *(json.dumps(_known(item)) for item in items)]
    return JobLedger(job_id=job["id"], name=job["name"], ledger=read_ledger(lines))


class JobTail:
    """The initial state and the rounds of a running job, as they come.

    Args:
        client: The service.
        job_id: The job.
    """

    def __init__(self, client: HDETClient, job_id: str) -> None:
        self._client = client
        self._job_id = job_id
        self._due: int | None = None
        self._attempt = 0

    def is_known(self, round: int) -> bool:
        """Whether a round was given out already."""
        return self._due is not None and round < self._due

    def rewind(self, attempt: int, round: int) -> None:
        """A new attempt begins at a round: what was given out from there on is abandoned."""
        if self._due is not None and attempt > self._attempt:
            self._attempt, self._due = attempt, min(self._due, round)

    def poll(self) -> Iterator[ScheduleState | LedgerItem]:
        """What is new since the last call: first the state, then rounds.

        Raises:
            LedgerError: a round can't be read.
        """
        if self._due is None:
            start = next(self._client.history_pages(self._job_id, page_size=1)).get("start")
            if start is None:
                return
            state = state_from_json(start)
            self._due = state.round
            yield state
        for data in self._client.history(self._job_id, from_round=self._due):
            item = _item(data)
            self._due, self._attempt = item.round + 1, max(self._attempt, item.attempt)
            yield item


def _known(item: dict[str, Any]) -> dict[str, Any]:
    return {name: item[name] for name in _ITEM_FIELDS if name in item}


def _item(data: dict[str, Any]) -> LedgerItem:
    try:
        item: LedgerItem = from_json(LedgerItem, _known(data))
    except HDETError as error:
        raise LedgerError(f"round {data.get('round')} of the job's ledger: {error}") from error
    return item
