"""The command line `hdet`. Each command imports what it needs when it runs, so that `hdet --help` is quick.

Exit codes: 0 done, 1 failed (a job or a training that ended badly, a ledger that departs or can't be read),
2 usage or a setting that can't work, 3 the service can't be reached, 4 the service refused, 130 interrupted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from hdet_ray.cli import backups, cluster, jobs, schedule, tokens
from hdet_ray.cli.exits import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE
from hdet_ray.exceptions import ConfigError, HDETError, MissingExtraError, OverrideError


class _Commands(TyperGroup):
    """Turns the library's own errors into one line on stderr."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except HDETError as error:
            typer.echo(f"hdet: {error}", err=True)
            is_usage = isinstance(error, ConfigError | MissingExtraError | OverrideError)
            raise typer.Exit(EXIT_USAGE if is_usage else EXIT_FAILED) from error
        except KeyboardInterrupt as interrupt:
            typer.echo("hdet: interrupted", err=True)
            raise typer.Exit(EXIT_INTERRUPTED) from interrupt


app = typer.Typer(
    cls=_Commands,
    help="Training runs whose replicas find max_lr in the first few per cent, then train.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

JobOrLedger = Annotated[
    str, typer.Argument(metavar="JOB|LEDGER", help="A job of the service, or a run's ledger (JSON lines).")
]


@app.command()
def demo(
    steps: Annotated[int, typer.Option(help="Optimizer steps of each of the three runs.")] = 1500,
    replicas: Annotated[int, typer.Option(min=2, help="Replicas, one process each.")] = 4,
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder of what the demo writes.")] = Path(
        "runs/demo"
    ),
    seed: Annotated[int, typer.Option(help="Of initial weights, data and assignments.")] = 0,
) -> None:
    """Start from a rate 30 times too low and see what the replicas find (about two minutes)."""
    from hdet_ray.cli.extras import extras_for

    with extras_for("demo"):
        from hdet_ray.cli.demo import run_demo

        run_demo(steps=steps, replicas=replicas, out=out, seed=seed)


@app.command()
def train(
    workload: Annotated[str, typer.Argument(help="byte_lm or digits.")],
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of the workload; repeat for more."),
    ] = None,
    replicas: Annotated[int, typer.Option(min=1, help="Replicas, one process each.")] = 4,
    out: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Folder of this workload's runs.", show_default="runs/WORKLOAD"),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="Name of the run; one that was broken off goes on.", show_default="the next free number"
        ),
    ] = None,
) -> None:
    """Train a built-in workload on this machine."""
    from hdet_ray.cli.extras import extras_for

    with extras_for("train"):
        from hdet_ray.cli.training import train_workload

        folder = out or Path("runs") / workload
        train_workload(workload, assignments or [], replicas=replicas, out=folder, name=name)


@app.command()
def replay(
    ledger: JobOrLedger,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Decide every round of a run anew and compare with what stands in its ledger, bit for bit."""
    from hdet_ray.cli.service_ledgers import existing_file, names_a_file

    if names_a_file(ledger):
        from hdet_ray.cli.replaying import replay_file

        holds = replay_file(existing_file(ledger), as_json=as_json)
    else:
        from hdet_ray.cli.replaying import replay_job

        holds = replay_job(ledger, as_json=as_json)
    if not holds:
        raise typer.Exit(EXIT_FAILED)


@app.command()
def report(
    ledger: JobOrLedger,
    out: Annotated[Path, typer.Option("-o", "--out", dir_okay=False, help="The page.")] = Path("report.html"),
    png: Annotated[Path | None, typer.Option(dir_okay=False, help="Also draw a picture.")] = None,
    title: Annotated[
        str | None, typer.Option(help="Title of the page.", show_default="the ledger's name")
    ] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=LEDGER", help="Another run to draw beside it; repeat for more."),
    ] = None,
) -> None:
    """Draw a run: its rates, what its search tried, its losses."""
    from hdet_ray.cli.extras import extras_for

    with extras_for("report"):
        from hdet_ray.cli.report import report_file, report_job
        from hdet_ray.cli.service_ledgers import existing_file, names_a_file

        if names_a_file(ledger):
            path = existing_file(ledger)
            report_file(path, page=out, picture=png, title=title, references=reference or [])
        else:
            report_job(ledger, page=out, picture=png, title=title, references=reference or [])
    typer.echo(f"wrote {out}" + (f" and {png}" if png else ""))


@app.command()
def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="JOB|CHECKPOINT", help="A job of the service, or a checkpoint's folder or URI."
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", dir_okay=False, help="The weights file.")] = Path(
        "model.safetensors"
    ),
    round: Annotated[
        int | None, typer.Option(min=0, help="Of which round; a job's only.", show_default="the newest")
    ] = None,
) -> None:
    """Write a checkpoint's weights to a file that torch loads without this library."""
    from hdet_ray.cli.extras import extras_for

    with extras_for("export"):
        from hdet_ray.cli.exporting import export_from

        path = export_from(source, out, round=round)
    typer.echo(f"wrote {path}")


for commands in (cluster, jobs, schedule, tokens, backups):
    commands.register(app)


def main() -> None:
    """The console script's entry."""
    app()


if __name__ == "__main__":
    main()
