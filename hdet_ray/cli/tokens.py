"""`hdet token …`: who may call the service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer

from hdet_ray.cli.jobs import AsJson
from hdet_ray.exceptions import ConfigError

if TYPE_CHECKING:
    from hdet_service.client import Role

ROLES = {
    "metrics": "scrapes /metrics",
    "viewer": "reads all jobs",
    "submitter": "submits, and sees its own jobs",
    "operator": "all jobs, overrides and tokens",
}

app = typer.Typer(no_args_is_help=True, help="Make, list and revoke tokens (operators only).")


def register(root: typer.Typer) -> None:
    """Add these commands."""
    root.add_typer(app, name="token")


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Who it is for; owns the jobs that it submits.")],
    role: Annotated[str, typer.Option(help="; ".join(f"{name}: {does}" for name, does in ROLES.items()))],
    as_json: AsJson = False,
) -> None:
    """A new token; it is shown this once."""
    from hdet_ray.cli.asking import print_json, service

    if role not in ROLES:
        raise ConfigError(f"--role {role!r} is no role; there are {', '.join(ROLES)}")
    with service("token create") as client:
        made = client.create_token(name, cast("Role", role))
        if as_json:
            print_json(made)
            return
        typer.echo(made["token"])
        typer.echo(f"a token of {made['name']} ({made['role']}): it is not shown again", err=True)


@app.command("list")
def list_tokens(as_json: AsJson = False) -> None:
    """All tokens, without their secrets."""
    from hdet_ray.cli.asking import console, print_json, service

    with service("token list") as client:
        tokens = client.tokens()
        if as_json:
            print_json({"items": tokens})
            return
        from rich.table import Table

        from hdet_ray.cli.times import ago_text

        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for heading in ("NAME", "ROLE", "MADE", "REVOKED"):
            table.add_column(heading, no_wrap=True)
        for token in tokens:
            revoked = token.get("revoked_at")
            table.add_row(
                token["name"],
                token["role"],
                ago_text(token.get("created_at")),
                ago_text(revoked) if revoked else "",
                style="dim" if revoked else "",
            )
        console().print(table)


@app.command()
def revoke(name: Annotated[str, typer.Argument(help="The token's name.")]) -> None:
    """End a token now."""
    from hdet_ray.cli.asking import service

    with service("token revoke") as client:
        client.revoke_token(name)
    typer.echo(f"revoked {name}")
