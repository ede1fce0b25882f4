"""A command whose optional packages are missing says which to install, instead of a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hdet_ray.exceptions import MissingExtraError

_IN_RAY_EXTRA = frozenset({"ray", "pyarrow", "safetensors", "numpy", "sklearn", "plotly", "matplotlib"})
_IN_SERVICE_EXTRA = frozenset(
    {
        "alembic",
        "fastapi",
        "httpx",
        "httpx_sse",
        "jinja2",
        "pathspec",
        "prometheus_client",
        "pydantic",
        "pydantic_settings",
        "sqlalchemy",
        "ulid",
        "uvicorn",
        "yaml",
    }
)


@contextmanager
def extras_for(command: str) -> Iterator[None]:
    """Around imports and calls that need the ``ray`` or the ``service`` extra.

    Raises:
        MissingExtraError: one of their packages is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        extra = "ray" if package in _IN_RAY_EXTRA else "service" if package in _IN_SERVICE_EXTRA else None
        if extra is None:
            raise
        raise MissingExtraError(
            f"hdet {command} needs {package}, which is not installed; run: pip install 'hdet-ray[{extra}]'"
        ) from error
