"""Commands that ask the service: its client, and what they print and end with when it says no."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from hdet_ray.cli.exits import EXIT_REFUSED, EXIT_UNREACHABLE, EXIT_USAGE
from hdet_ray.cli.extras import extras_for

if TYPE_CHECKING:
    from rich.console import Console

    from hdet_service.client import ClientError, HDETClient

_WIDTH_OFF_TERMINAL = 160


@contextmanager
def service(command: str) -> Iterator[HDETClient]:
    """A client of the service, for as long as a command runs.

    Raises:
        typer.Exit: what the client raised, told in one line: 3 unreachable, 4 refused, 2 usage.
    """
    with extras_for(command):
        from hdet_service.client import ClientError, HDETClient

        try:
            with HDETClient() as client:
                yield client
        except ClientError as error:
            tell(error)
            raise typer.Exit(exit_code_of(error)) from error
        except BrokenPipeError:
            # The reader of our output went away, as `head` does: nobody is left to tell.
            sys.stderr.close()
            raise typer.Exit(0) from None


def tell(error: ClientError) -> None:
    """Print an error in one line; the jobs that a name stands for follow, one a line."""
    from hdet_service.client import AmbiguousJob, Unauthorized

    text = " ".join(str(error).split())
    if isinstance(error, Unauthorized):
        text += "; it goes into HDET_TOKEN, or the file token in HDET_HOME"
    typer.echo(f"hdet: {text}", err=True)
    if isinstance(error, AmbiguousJob):
        for job_id, name, state in error.matches:
            typer.echo(f"  {job_id}  {state:<9}  {name}", err=True)


def exit_code_of(error: ClientError) -> int:
    """The exit code that an error of the client ends a command with."""
    from hdet_service.client import AmbiguousJob, PackageError, UnexpectedAnswer, Unreachable

    if isinstance(error, Unreachable | UnexpectedAnswer):
        return EXIT_UNREACHABLE
    return EXIT_USAGE if isinstance(error, AmbiguousJob | PackageError) else EXIT_REFUSED


def print_json(value: Any) -> None:
    """One JSON document a line: no colours, no wrapping."""
    typer.echo(json.dumps(value, ensure_ascii=False))


def console() -> Console:
    """Where tables go. Into a pipe they are wide enough to keep their lines whole."""
    from rich.console import Console

    plain = Console()
    return plain if plain.is_terminal else Console(width=_WIDTH_OFF_TERMINAL)
