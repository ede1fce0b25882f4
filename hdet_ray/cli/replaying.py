"""`hdet replay`: does a ledger follow from its own reports?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from hdet_ray.core.replay import Departure, Ledger, Replay, read_ledger, replay
from hdet_ray.exceptions import HDETError, LedgerError

_SHOWN = 60
"""Characters of a recorded or expected value."""


def read_ledger_file(path: Path) -> Ledger:
    """The ledger in a file.

    Raises:
        LedgerError: it is no text, or a line is broken or missing; names the file.
    """
    try:
        return read_ledger(path.read_text(encoding="utf-8").splitlines())
    except (UnicodeDecodeError, OSError, LedgerError) as error:
        raise LedgerError(f"{path}: {error}") from error


def replay_file(path: Path, *, as_json: bool) -> bool:
    """Replay a ledger's file and print the outcome; says whether it holds.

    Raises:
        LedgerError: the file can't be read as a ledger, and JSON was not asked for.
    """
    try:
        ledger = read_ledger_file(path)
    except HDETError as error:
        if not as_json:
            raise
        typer.echo(json.dumps({"ok": False, "rounds": 0, "error": str(error)}))
        return False
    return _replayed(ledger, as_json=as_json)


def replay_job(job: str, *, as_json: bool) -> bool:
    """Replay a job's ledger from the service and print the outcome; says whether it holds.

    Args:
        job: The job's id, start of it, or name.

    Raises:
        LedgerError: it has no ledger yet, or a line of it is broken.
    """
    from hdet_ray.cli.asking import service
    from hdet_ray.cli.service_ledgers import read_job_ledger

    with service("replay") as client:
        ledger = read_job_ledger(client, job).ledger
    return _replayed(ledger, as_json=as_json)


def _replayed(ledger: Ledger, *, as_json: bool) -> bool:
    outcome = replay(ledger)
    typer.echo(json.dumps(_as_json(ledger, outcome)) if as_json else _as_text(ledger, outcome))
    return outcome.departure is None


def _as_json(ledger: Ledger, outcome: Replay) -> dict[str, Any]:
    departure = outcome.departure
    return {
        "ok": departure is None,
        "rounds": outcome.rounds,
        "rounds_in_ledger": len(ledger.items),
        "step": outcome.state.step,
        "departure": None
        if departure is None
        else {
            "round": departure.round,
            "field": departure.field,
            "recorded": departure.recorded,
            "expected": departure.expected,
        },
    }


def _as_text(ledger: Ledger, outcome: Replay) -> str:
    departure = outcome.departure
    if departure is None:
        return f"{outcome.rounds} rounds replayed: every plan follows from its report, bit for bit."
    return "\n".join(
        [
            f"departs at round {departure.round}: {outcome.rounds} of {len(ledger.items)} rounds hold",
            *_difference(departure),
        ]
    )


def _difference(departure: Departure) -> list[str]:
    return [
        f"  field     {departure.field}",
        f"  recorded  {_short(departure.recorded)}",
        f"  expected  {_short(departure.expected)}",
    ]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _SHOWN or isinstance(value, str) else f"{text[:_SHOWN]} …"
