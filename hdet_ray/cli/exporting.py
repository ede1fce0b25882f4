"""`hdet export`: weights of a checkpoint, from its own folder or from a job of the service."""

from __future__ import annotations

from pathlib import Path

from hdet_ray.exceptions import ConfigError


def export_from(source: str, out: Path, *, round: int | None) -> Path:
    """Write weights that torch loads by itself; gives the file.

    Args:
        source: A checkpoint's folder or URI (it has a slash, or is there), else a job's id or name.
        round: A job's round; None takes the newest checkpoint.

    Raises:
        ConfigError: a round of a checkpoint that is one already.
        CheckpointError: no complete checkpoint is there.
    """
    if "/" in source or Path(source).exists():
        if round is not None:
            raise ConfigError(f"--round {round}: {source} is one checkpoint already; leave --round out")
        from hdet_ray.train.export import export_weights

        return Path(export_weights(source, out))
    from hdet_ray.cli.asking import service

    with service("export") as client:
        return client.export(client.find_job(source)["id"], out, round=round)
