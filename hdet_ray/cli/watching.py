"""`hdet watch`: a job's live table, from its ledger and its stream of events.

The rounds come from the history, so that the table says what replay would say; events only tell when to
look. A lost connection is made anew; the table stays where it is meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from hdet_ray.cli.asking import console, print_json
from hdet_ray.cli.job_views import STATE_STYLES
from hdet_ray.cli.live import RoundPrinter, RunTable
from hdet_ray.cli.service_ledgers import JobTail

if TYPE_CHECKING:
    from hdet_service.client import HDETClient, Job

_TOLD_EVENTS = frozenset(
    {"state", "attempt", "override", "note", "quarantine", "rollback", "resize", "recovery", "retry"}
)


class JobTable(RunTable):
    """A run's table with the job's own state below it."""

    def __init__(self, job: Job) -> None:
        super().__init__(f"{job['name']}  {job['id']}")
        self.state = job["state"]
        self.standing = standing_text(job)
        self.newest_event = Text()

    def __rich__(self) -> RenderableType:
        below = Group(self.standing, self.newest_event) if self.newest_event else self.standing
        return Group(super().__rich__(), Padding(below, (1, 0, 0, 2)))

    def take(self, event: Mapping[str, Any]) -> Text:
        """An event as a line; a change of state is kept."""
        text = event_text(event)
        if event["type"] == "state":
            self.state = event["data"]["state"]
            self.standing = standing_text(event["data"])
        else:
            self.newest_event = text
        return text


def watch_job(client: HDETClient, job: Job, *, as_json: bool) -> bool:
    """Show a job until it is over; says whether it succeeded.

    Args:
        as_json: Print its events as JSON, one a line, instead of the table.
    """
    if as_json:
        for event in client.follow_events(job["id"]):
            print_json(event)
    else:
        _draw(client, job)
    return client.job(job["id"])["state"] == "SUCCEEDED"


def _draw(client: HDETClient, job: Job) -> None:
    table, tail = JobTable(job), JobTail(client, job["id"])
    with RoundPrinter(console()) as printer:
        newest = newest_event(client, job["id"])
        printer.tell(table, table.standing)
        printer.show(table, tail.poll())
        for event in client.follow_events(job["id"], after=newest):
            data = event["data"]
            if event["type"] == "round":
                # One look may bring the rounds of several events.
                if not tail.is_known(data["round"]):
                    printer.show(table, tail.poll())
                continue
            if event["type"] == "attempt":
                tail.rewind(data["attempt"], data["round"])
            if event["type"] in _TOLD_EVENTS:
                printer.tell(table, table.take(event))
        final = client.job(job["id"])
        table.standing, table.newest_event = standing_text(final), Text()
        printer.show(table, tail.poll())
        printer.leave(table)


def newest_event(client: HDETClient, job_id: str) -> int | None:
    """Id of the newest event: what is read after this call tells of it and of all before."""
    newest = None
    for event in client.events(job_id, page_size=200):
        newest = event["id"]
    return newest


def standing_text(job: Mapping[str, Any]) -> Text:
    """State, reason and message in a line."""
    text = Text(str(job["state"]), style=STATE_STYLES.get(str(job["state"]), ""))
    if job.get("reason"):
        text.append(f" {job['reason']}", style="dim")
    if job.get("message"):
        text.append(f": {job['message']}")
    return text


def event_text(event: Mapping[str, Any]) -> Text:
    """An event in a line."""
    if event["type"] == "state":
        return standing_text(event["data"])
    told = ", ".join(
        f"{name} {value}" for name, value in event["data"].items() if value not in (None, "", [], {})
    )
    return Text.assemble((f"{event['type']}: ", "bold"), told)
