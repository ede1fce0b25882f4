"""`hdet backup` and `hdet restore`: the controller's database, kept logs and packages as one file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from hdet_ray.cli.exits import EXIT_REFUSED

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(root: typer.Typer) -> None:
    """Add these commands."""
    root.command()(backup)
    root.command()(restore)


def backup(
    target: Annotated[
        Path,
        typer.Argument(metavar="FILE", dir_okay=False, help="The archive (.tar.gz); must not be there yet."),
    ],
    as_json: AsJson = False,
) -> None:
    """Copy the state of this HDET_HOME's controller, also while it works. Checkpoints stay where they are."""
    with _told("backup"):
        from hdet_service.settings import load_client_settings
        from hdet_service.store.backup import backup as take

        summary = take(load_client_settings().database_path, target)
    _print("wrote", summary, as_json)


def restore(
    source: Annotated[
        Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="An archive of `hdet backup`.")
    ],
    force: Annotated[bool, typer.Option("--force", help="Move a database that is there aside.")] = False,
    as_json: AsJson = False,
) -> None:
    """Put a backup's state into this HDET_HOME, whose controller must be down."""
    with _told("restore"):
        from hdet_service.settings import load_client_settings
        from hdet_service.store.backup import restore as give_back

        home = load_client_settings()
        summary = give_back(source, home.database_path, force=force)
    _print("restored", summary, as_json)


@contextmanager
def _told(command: str) -> Iterator[None]:
    """The store's refusals in one line.

    Raises:
        typer.Exit: 4, the store said no.
    """
    from hdet_ray.cli.extras import extras_for

    with extras_for(command):
        from hdet_service.store.errors import StoreError

        try:
            yield
        except StoreError as error:
            typer.echo(f"hdet: {error}", err=True)
            raise typer.Exit(EXIT_REFUSED) from error


def _print(verb: str, summary: Any, as_json: bool) -> None:
    if as_json:
        import dataclasses

        from hdet_ray.cli.asking import print_json

        found = dataclasses.asdict(summary)
        print_json({name: str(v) if isinstance(v, Path) else v for name, v in found.items()})
        return
    counts = f"{summary.num_jobs} jobs, {summary.num_logs} logs, {summary.num_packages} packages"
    typer.echo(f"{verb} {summary.path}: {counts}")
    if summary.replaced is not None:
        typer.echo(f"the database that was there lies at {summary.replaced}")
