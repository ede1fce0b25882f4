"""`hdet submit`, `jobs …`, `watch` and `logs`: what people do with jobs of the service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hdet_ray.cli.exits import EXIT_FAILED
from hdet_ray.exceptions import ConfigError

STATES = (
    "QUEUED",
    "STARTING",
    "RUNNING",
    "DEGRADED",
    "STOPPING",
    "PAUSED",
    "SUCCEEDED",
    "FAILED",
    "CANCELED",
)

JobName = Annotated[
    str, typer.Argument(metavar="JOB", help="A job's id, a unique start of it, or a unique name.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Why = Annotated[str | None, typer.Option(metavar="TEXT", help="Why; kept in the audit.")]

app = typer.Typer(no_args_is_help=True, help="List, show, cancel, pause, resume and delete jobs.")


def register(root: typer.Typer) -> None:
    """Add these commands."""
    root.command()(submit)
    root.add_typer(app, name="jobs")
    root.command()(watch)
    root.command()(logs)


def submit(
    spec: Annotated[
        str | None,
        typer.Argument(metavar="[FILE]", help="The job's spec, YAML or JSON; - reads standard input."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the job; may repeat.")] = None,
    entrypoint: Annotated[
        str | None, typer.Option(help="module:function, a built-in workload, or a command in quotes.")
    ] = None,
    replicas: Annotated[int | None, typer.Option(min=1, help="Replicas that train.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of its config; repeatable."),
    ] = None,
    controller: Annotated[
        str | None, typer.Option(help="auto, paper or fixed, in place of the script's.")
    ] = None,
    working_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder to upload; .gitignore and .hdetignore leave files out."),
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Leave these files out too; repeatable.")
    ] = None,
    pip: Annotated[list[str] | None, typer.Option(help="A requirement of the job; repeatable.")] = None,
    env: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Environment; repeatable.")
    ] = None,
    label: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="A label; repeatable.")] = None,
    priority: Annotated[int | None, typer.Option(help="Higher ones start first.")] = None,
    max_failures: Annotated[int | None, typer.Option(min=0, help="Retries.", show_default="3")] = None,
    key: Annotated[
        str | None, typer.Option("--idempotency-key", help="The same key never makes a second job.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and show; submit nothing.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Watch it until it is over.")] = False,
    as_json: AsJson = False,
) -> None:
    """Submit a job from a file, from flags, or both (flags win)."""
    from hdet_ray.cli.extras import extras_for

    with extras_for("submit"):
        from hdet_ray.cli.specs import Flags
        from hdet_ray.cli.submitting import submit_job

        flags = Flags(
            name=name,
            entrypoint=entrypoint,
            replicas=replicas,
            settings=settings or (),
            controller=controller,
            pip=pip or (),
            env=env or (),
            labels=label or (),
            priority=priority,
            max_failures=max_failures,
        )
        has_ended_well = submit_job(
            spec,
            flags,
            working_dir=working_dir,
            exclude=exclude or (),
            key=key,
            is_dry_run=dry_run,
            is_watched=watch,
            as_json=as_json,
        )
    if not has_ended_well:
        raise typer.Exit(EXIT_FAILED)


@app.command("list")
def list_jobs(
    state: Annotated[list[str] | None, typer.Option(help="In this state only; repeatable.")] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="With this label only.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Newest ones, that many.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Jobs, newest first."""
    from itertools import islice

    from hdet_ray.cli.asking import console, print_json, service

    states = [_state(text) for text in state or ()]
    labels = dict(_label(text) for text in label or ())
    with service("jobs list") as client:
        # One more than asked for tells whether there are more.
        found = list(
            islice(client.jobs(states=states, labels=labels, page_size=min(limit + 1, 200)), limit + 1)
        )
        jobs = found[:limit]
        if as_json:
            print_json({"items": jobs, "has_more": len(found) > limit})
            return
        from hdet_ray.cli.job_views import jobs_table

        if not jobs:
            typer.echo("no jobs" + (" like that" if states or labels else " yet; `hdet submit` makes one"))
            return
        console().print(jobs_table(jobs))
        if len(found) > limit:
            typer.echo(f"… and more: --limit shows them (now {limit})")


@app.command()
def show(job: JobName, as_json: AsJson = False) -> None:
    """One job: where it stands, what was asked for, how it came here."""
    from hdet_ray.cli.asking import console, print_json, service

    with service("jobs show") as client:
        found = client.job(client.find_job(job)["id"])
        if as_json:
            print_json(found)
            return
        from hdet_ray.cli.job_views import job_view

        console().print(job_view(found), highlight=False)


@app.command()
def cancel(job: JobName, reason: Why = None, as_json: AsJson = False) -> None:
    """End a job now."""
    _act("cancel", job, reason, as_json)


@app.command()
def pause(job: JobName, reason: Why = None, as_json: AsJson = False) -> None:
    """Take a checkpoint, then stop the job's processes."""
    _act("pause", job, reason, as_json)


@app.command()
def resume(job: JobName, reason: Why = None, as_json: AsJson = False) -> None:
    """Let a paused job go on from its checkpoint."""
    _act("resume", job, reason, as_json)


@app.command()
def delete(job: JobName) -> None:
    """Delete a finished job, with its ledger and logs."""
    from hdet_ray.cli.asking import service

    with service("jobs delete") as client:
        found = client.find_job(job)
        client.delete(found["id"])
    typer.echo(f"deleted {found['name']} ({found['id']})")


def watch(
    job: JobName, as_json: Annotated[bool, typer.Option("--json", help="Print events, one a line.")] = False
) -> None:
    """Watch a job until it is over; ends with 1 where it did not succeed."""
    from hdet_ray.cli.asking import service

    with service("watch") as client:
        from hdet_ray.cli.watching import watch_job

        has_succeeded = watch_job(client, client.find_job(job), as_json=as_json)
    if not has_succeeded:
        raise typer.Exit(EXIT_FAILED)


def logs(
    job: JobName,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the job is over.")] = False,
    tail: Annotated[int | None, typer.Option(min=1, metavar="LINES", help="Newest lines only.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, an object a line.")] = False,
) -> None:
    """What a job's processes have written."""
    from hdet_ray.cli.asking import service

    with service("logs") as client:
        from hdet_ray.cli.log_lines import print_logs

        print_logs(client, client.find_job(job)["id"], follow=follow, tail=tail, as_json=as_json)


def _act(action: str, text: str, reason: str | None, as_json: bool) -> None:
    from hdet_ray.cli.asking import print_json, service

    with service(f"jobs {action}") as client:
        found = client.find_job(text)
        calls = {"cancel": client.cancel, "pause": client.pause, "resume": client.resume}
        job = calls[action](found["id"], reason)
        if as_json:
            print_json(job)
        else:
            typer.echo(f"{job['name']} ({job['id']}): {job['state']} {job['reason']}")


def _state(text: str) -> str:
    if text.upper() not in STATES:
        raise ConfigError(f"--state {text!r} is no state; there are {', '.join(STATES)}")
    return text.upper()


def _label(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ConfigError(f"--label {text!r} is no label; write it as KEY=VALUE")
    return key, value
