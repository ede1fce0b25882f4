"""`hdet schedule …`: a job's schedule, read and steered by hand.

A change names the revision that it was decided on: whoever changed the schedule in between makes it fail
instead of being overruled.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hdet_ray.cli.exits import EXIT_REFUSED
from hdet_ray.cli.jobs import AsJson, JobName, Why
from hdet_ray.exceptions import ConfigError

if TYPE_CHECKING:
    from hdet_service.client import HDETClient, Override

HParam = Annotated[str, typer.Option(help="The hyperparameter.")]

app = typer.Typer(no_args_is_help=True, help="Read a job's schedule and steer it.")


def register(root: typer.Typer) -> None:
    """Add these commands."""
    root.add_typer(app, name="schedule")


@app.command()
def show(job: JobName, as_json: AsJson = False) -> None:
    """Where the schedule is, what each replica does, what the search found, which overrides are in force."""
    from hdet_ray.cli.asking import console, print_json, service

    with service("schedule show") as client:
        schedule = client.schedule(client.find_job(job)["id"])
        if as_json:
            print_json(schedule)
            return
        from hdet_ray.cli.schedule_view import schedule_view

        console().print(schedule_view(schedule), highlight=False)


@app.command()
def override(
    job: JobName,
    set_to: Annotated[float | None, typer.Option("--set", metavar="VALUE", help="Pin the value.")] = None,
    scale: Annotated[
        float | None, typer.Option(metavar="FACTOR", help="Multiply the value; 0.5 halves it.")
    ] = None,
    remove: Annotated[str | None, typer.Option(metavar="ID", help="Take this override back.")] = None,
    hparam: HParam = "lr",
    group: Annotated[int | None, typer.Option(min=0, help="Parameter group.", show_default="all")] = None,
    at_round: Annotated[int | None, typer.Option(min=0, help="Apply then.", show_default="the next")] = None,
    for_rounds: Annotated[
        int | None, typer.Option(min=1, help="Rounds in force.", show_default="until removed")
    ] = None,
    reason: Why = None,
    if_match: Annotated[
        int | None,
        typer.Option(metavar="REVISION", help="Only on this revision.", show_default="the present one"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would change; change nothing.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Until it is applied, refused or taken back.")] = False,
    as_json: AsJson = False,
) -> None:
    """Set or scale a value by hand, from a round on and for a number of rounds."""
    from hdet_ray.cli.asking import print_json, service

    given = [text is not None for text in (set_to, scale, remove)]
    if sum(given) != 1:
        raise ConfigError(
            "give one of --set VALUE, --scale FACTOR and --remove ID, as --scale 0.5 to halve a rate"
        )
    if remove is not None and dry_run:
        raise ConfigError("--dry-run shows what a new override would change; leave it out with --remove")
    body = {} if remove else override_body(set_to, scale, hparam, group, at_round, for_rounds, reason)
    with service("schedule override") as client:
        job_id = client.find_job(job)["id"]
        if remove is not None:
            taken = client.remove_override(job_id, remove, if_match=if_match, reason=reason)
            if wait:
                taken = _settled(client, job_id, taken, ("pending", "applied"))
            is_removed = taken["state"] == "removed"
            if as_json:
                print_json(taken)
            elif wait and not is_removed:
                typer.echo(outcome_text(taken))
            else:
                typer.echo(f"override {remove} is taken back{'' if is_removed else ' at the next round'}")
            if wait and taken["state"] not in ("removed", "expired"):
                raise typer.Exit(EXIT_REFUSED)
            return
        revision = client.schedule(job_id)["revision"] if if_match is None else if_match
        if dry_run:
            _show_preview(client.preview_override(job_id, body, if_match=revision), as_json)
            return
        made = client.override(job_id, body, if_match=revision)
        if wait:
            made = _settled(client, job_id, made, ("pending",))
        if as_json:
            print_json(made)
        else:
            typer.echo(outcome_text(made))
        if made["state"] == "refused":
            raise typer.Exit(EXIT_REFUSED)


@app.command()
def rollback(
    job: JobName,
    round: Annotated[int, typer.Argument(min=0, metavar="ROUND", help="One that has a checkpoint.")],
    reason: Why = None,
    as_json: AsJson = False,
) -> None:
    """Back to the schedule and the checkpoint of a round, as a new attempt."""
    from hdet_ray.cli.asking import print_json, service

    with service("schedule rollback") as client:
        answer = client.rollback(client.find_job(job)["id"], round, reason=reason)
        if as_json:
            print_json(answer)
        else:
            typer.echo(f"goes back to round {round}; watch it with: hdet watch {job}")


@app.command()
def freeze(job: JobName, hparam: HParam = "lr", reason: Why = None, as_json: AsJson = False) -> None:
    """Stop the controller for a hyperparameter: its base follows one-cycle alone."""
    _steer(job, hparam, reason, as_json, frozen=True)


@app.command()
def resume(job: JobName, hparam: HParam = "lr", reason: Why = None, as_json: AsJson = False) -> None:
    """Let the controller go on."""
    _steer(job, hparam, reason, as_json, frozen=False)


@app.command()
def bound(
    job: JobName,
    low: Annotated[float, typer.Option(help="Lowest base value.")],
    high: Annotated[float, typer.Option(help="Highest base value.")],
    hparam: HParam = "lr",
    reason: Why = None,
    as_json: AsJson = False,
) -> None:
    """Keep a hyperparameter's base value within bounds."""
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(f"bounds ({low}, {high}) must be finite, --low below --high")
    _steer(job, hparam, reason, as_json, bounds=(low, high))


def override_body(
    set_to: float | None,
    scale: float | None,
    hparam: str,
    group: int | None,
    at_round: int | None,
    for_rounds: int | None,
    reason: str | None,
) -> dict[str, Any]:
    """The request of an override: what was given, and nothing else.

    Raises:
        ConfigError: a value that can't be set, or a factor that can't scale.
    """
    op, value = ("set", set_to) if set_to is not None else ("scale", scale)
    if value is None or not math.isfinite(value):
        raise ConfigError(f"--{op} {value} must be a finite number")
    if op == "scale" and value <= 0:
        raise ConfigError(f"--scale {value}: a factor must be above 0; 0.5 halves the value")
    body = {
        "hparam": hparam,
        "op": op,
        "value": value,
        "group": group,
        "apply_at_round": at_round,
        "expires_after_rounds": for_rounds,
        "reason": reason,
    }
    return {name: item for name, item in body.items() if item is not None}


def outcome_text(override: Override) -> str:
    """What has become of an override."""
    state, override_id = override["state"], override["id"]
    if state == "refused":
        return f"override {override_id} was refused: {override['refusal']}"
    if state == "applied":
        return f"override {override_id} is applied since round {override['applied_round']}"
    if state == "expired":
        return f"override {override_id} was applied at round {override['applied_round']} and has expired"
    if state == "removed":
        return f"override {override_id} was taken back"
    due = override.get("applies_at_round")
    when = "after the search" if due is None else f"at round {due}"
    return f"override {override_id} is pending and applies {when}"


def _steer(
    text: str,
    hparam: str,
    reason: str | None,
    as_json: bool,
    *,
    frozen: bool | None = None,
    bounds: tuple[float, float] | None = None,
) -> None:
    from hdet_ray.cli.asking import print_json, service

    with service("schedule") as client:
        job_id = client.find_job(text)["id"]
        revision = client.schedule(job_id)["revision"]
        answer = client.steer(job_id, hparam, frozen=frozen, bounds=bounds, reason=reason, if_match=revision)
        if as_json:
            print_json(answer)
            return
        what = f"is bounded to {bounds}" if bounds else "is frozen" if frozen else "goes on"
        typer.echo(f"{hparam} {what} from the next round")


def _settled(client: HDETClient, job_id: str, override: Override, unsettled: tuple[str, ...]) -> Override:
    """The override once it has left these states, or the job is over."""
    from hdet_ray.cli.watching import newest_event

    newest = newest_event(client, job_id)
    override = client.override_state(job_id, override["id"])
    if override["state"] not in unsettled:
        return override
    for event in client.follow_events(job_id, after=newest):
        if event["type"] in ("override", "round", "state"):
            override = client.override_state(job_id, override["id"])
        if override["state"] not in unsettled:
            return override
    return override


def _show_preview(preview: dict[str, Any], as_json: bool) -> None:
    from hdet_ray.cli.asking import console, print_json

    if as_json:
        print_json(preview)
        return
    from hdet_ray.cli.schedule_view import preview_view

    console().print(preview_view(preview), highlight=False)
    typer.echo("nothing was changed; leave out --dry-run to do it")
