"""`hdet submit`: check, upload what is needed, submit, and say what to do next."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from hdet_ray.cli.asking import console, print_json, service
from hdet_ray.cli.specs import Flags, check, spec_of, with_package

_ANY_PACKAGE = "0" * 64
"""Stands for the package while the rest of a spec is checked."""


def submit_job(
    file: str | None,
    flags: Flags,
    *,
    working_dir: Path | None,
    exclude: Sequence[str],
    key: str | None,
    is_dry_run: bool,
    is_watched: bool,
    as_json: bool,
) -> bool:
    """Submit a job, or show what would be; says whether it ended well, where it was watched.

    Raises:
        ConfigError: something of the spec can't work; nothing was sent.
    """
    spec = spec_of(file, flags)
    check(spec if working_dir is None else with_package(spec, _ANY_PACKAGE))
    with service("submit") as client:
        if is_dry_run:
            _preview(client.preview(spec), _package_facts(working_dir, exclude), as_json)
            return True
        if working_dir is not None:
            spec = with_package(spec, client.upload_package(working_dir, exclude=exclude))
        job = client.submit(spec, idempotency_key=key)
        if as_json and not is_watched:
            print_json(job)
        elif not as_json:
            typer.echo(f"submitted {job['name']} as {job['id']}")
        if is_watched:
            from hdet_ray.cli.watching import watch_job

            return watch_job(client, job, as_json=as_json)
        if not as_json:
            typer.echo(f"watch it with: hdet watch {job['id']}")
    return True


def _package_facts(working_dir: Path | None, exclude: Sequence[str]) -> dict[str, Any] | None:
    """What would be uploaded."""
    if working_dir is None:
        return None
    from hdet_service.client import describe_package

    return describe_package(working_dir, exclude)


def _preview(preview: dict[str, Any], package: dict[str, Any] | None, as_json: bool) -> None:
    if as_json:
        print_json(preview if package is None else {**preview, "package": package})
        return
    import yaml  # type: ignore[import-untyped]  # it carries no types
    from rich.syntax import Syntax

    text = yaml.safe_dump(preview, sort_keys=False, allow_unicode=True)
    console().print(Syntax(text.rstrip(), "yaml", background_color="default", word_wrap=True))
    if package is not None:
        typer.echo(
            f"package of {package['files']} files, {package['size_bytes'] / 1e6:.2f} MB, "
            f"sha256 {package['sha256']} (not uploaded)"
        )
    typer.echo("nothing was submitted; leave out --dry-run to do it")
