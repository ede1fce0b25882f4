"""`hdet backup` and `hdet restore`: the controller's database and kept logs as one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(root: typer.Typer) -> None:
    """Add these commands."""
    root.command()(backup)
    root.command()(restore)


def backup(
    out: Annotated[
        Path, typer.Option("-o", "--out", dir_okay=False, help="The file; must not be there yet.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Copy the state of the controller of this HDET_HOME, also while it runs."""


def restore(
    source: Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="A backup.")],
) -> None:
    """Put a backup's state into this HDET_HOME, whose controller must be down."""
