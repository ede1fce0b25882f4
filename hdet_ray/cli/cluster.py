"""`hdet up`, `status`, `drain`, `down`: a service on this machine.

Exit codes: 0 done, 1 failed, 2 usage or a setting that can't work, 3 nothing answers, 4 refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from hdet_ray.cli.exits import EXIT_FAILED, EXIT_REFUSED, EXIT_UNREACHABLE
from hdet_ray.cli.extras import extras_for

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def up(
    port: Annotated[int | None, typer.Option(help="Of the service.", show_default="8470")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    address: Annotated[
        str | None, typer.Option(help="HOST:PORT of a Ray cluster to join, in place of a head of its own.")
    ] = None,
    cpus: Annotated[
        int | None, typer.Option(min=1, help="Logical CPUs of its own head.", show_default="at least 16")
    ] = None,
    max_running_jobs: Annotated[int | None, typer.Option(min=1, help="Jobs that run at once.")] = None,
    supervise: Annotated[
        bool, typer.Option("--supervise", help="Stay, and bring back what dies; Ctrl-C ends it all.")
    ] = False,
    insecure_i_know: Annotated[
        bool, typer.Option("--insecure-i-know", help="Listen beyond loopback without TLS in front.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Start the service, and a Ray of its own unless --address names one; returns once it is ready."""
    with extras_for("up"):
        from hdet_service import cluster
        from hdet_service.settings import load_settings

    settings = load_settings(
        port=port,
        host=host,
        max_running_jobs=max_running_jobs,
        insecure_i_know=insecure_i_know or None,
    )
    say = _quiet if as_json else typer.echo
    with _exit_codes():
        started = cluster.up(settings, address=address, num_cpus=cpus, say=say)
    running = started.running
    if as_json:
        typer.echo(
            json.dumps({"url": running.url, "new": started.is_new, "token_file": str(settings.token_path)})
        )
    else:
        _tell(started, settings.token_path)
    if supervise:
        from hdet_service.supervise import supervise as watch

        watch(running, say, num_cpus=cpus)


def down() -> None:
    """End the service and what `hdet up` started with it; leaves no process."""
    with extras_for("down"):
        from hdet_service import cluster
        from hdet_service.settings import load_settings

    home = load_settings().home
    with _exit_codes():
        was_running = cluster.down(home)
    typer.echo("down" if was_running else f"nothing was started from {home}")


def status(as_json: AsJson = False) -> None:
    """Say what runs; exit code 3 if the service does not answer."""
    with extras_for("status"):
        from hdet_service import cluster
        from hdet_service.settings import load_settings

    with _exit_codes():
        found = cluster.status(load_settings().home)
    if as_json:
        typer.echo(json.dumps(found))
    else:
        _show(found)
    if not found["ready"]:
        raise typer.Exit(EXIT_UNREACHABLE)


def drain(
    off: Annotated[
        bool, typer.Option("--off", help="End the drain: admit again, resume what it paused.")
    ] = False,
    reason: Annotated[str, typer.Option(help="For the audit.")] = "",
    wait_s: Annotated[
        float | None, typer.Option(min=0, help="Seconds to wait until all jobs have paused.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Admit no more jobs and pause those that run, each with a checkpoint."""
    with extras_for("drain"):
        from hdet_service import draining
        from hdet_service.settings import load_settings

    settings = load_settings()
    with _exit_codes():
        answer = draining.drain(settings, is_draining=not off, reason=reason, wait_s=wait_s)
    if as_json:
        typer.echo(json.dumps(answer))
        return
    verb = "resumed" if off else "paused" if wait_s is not None else "pausing"
    typer.echo(f"{'admitting again' if off else 'draining'}; {len(answer['jobs'])} jobs {verb}")


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (up, status, drain, down):
        app.command()(command)


@contextmanager
def _exit_codes() -> Iterator[None]:
    """Turns the service's errors into one line and the exit code that is theirs."""
    from hdet_service.cluster_state import ClusterError, NotRunningError, PortTakenError
    from hdet_service.draining import DrainRefusedError

    codes = {NotRunningError: EXIT_UNREACHABLE, DrainRefusedError: EXIT_REFUSED, PortTakenError: EXIT_REFUSED}
    try:
        yield
    except ClusterError as error:
        typer.echo(f"hdet: {error}", err=True)
        raise typer.Exit(codes.get(type(error), EXIT_FAILED)) from error


def _quiet(_: str) -> None:
    return None


def _tell(started: Any, token_path: Path) -> None:
    running = started.running
    if not started.is_new:
        typer.echo(f"already up at {running.url}")
        return
    typer.echo(f"up at {running.url}")
    if started.is_first_token:
        typer.echo(f"token (operator, shown once): {token_path.read_text(encoding='utf-8').strip()}")
        typer.echo(f"  kept in {token_path}")
    home = os.environ.get("HDET_HOME")
    with_home = f"HDET_HOME={home} " if home else ""
    typer.echo("Next:")
    typer.echo(f"  {with_home}hdet submit --name first --entrypoint byte_lm --replicas 4")
    typer.echo(f"  {with_home}hdet down")


def _show(found: dict[str, Any]) -> None:
    controller, head = found["controller"], found["head"]
    typer.echo(f"{found['url']}  {'ready' if found['ready'] else 'NOT READY'}")
    typer.echo(f"controller  pid {controller['pid']}, epoch {controller['epoch']}")
    typer.echo(f"ray         {head['address']}" + (f", head pid {head['pid']}" if head["pid"] else ""))
    jobs = ", ".join(f"{count} {state}" for state, count in sorted(found["jobs"].items())) or "none"
    typer.echo(f"jobs        {jobs}")
