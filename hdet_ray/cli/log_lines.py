"""`hdet logs`: what a job's processes have written, and go on writing."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import typer

from hdet_ray.cli.asking import print_json

if TYPE_CHECKING:
    from hdet_service.client import HDETClient


def print_logs(client: HDETClient, job_id: str, *, follow: bool, tail: int | None, as_json: bool) -> None:
    """Print a job's output.

    Args:
        follow: Go on until the job is over.
        tail: Newest lines only, that many; None prints all.
        as_json: A JSON object a line.
    """
    if tail is None and follow:
        _print(client.follow_logs(job_id), as_json)
        return
    items = client.logs(job_id, page_size=200)
    known = items if tail is None else deque(items, maxlen=tail)
    newest = _print(known, as_json)
    if follow:
        _print(client.follow_logs(job_id, after=newest), as_json)


def _print(items: Iterable[dict[str, Any]], as_json: bool) -> Any:
    newest = None
    for item in items:
        newest = item.get("id", item.get("offset"))
        if as_json:
            print_json(item)
        else:
            typer.echo(item["line"])
    return newest
