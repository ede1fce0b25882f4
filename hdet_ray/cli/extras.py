"""A command whose optional packages are missing says which to install, instead of a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hdet_ray.exceptions import MissingExtraError

_IN_RAY_EXTRA = frozenset({"ray", "pyarrow", "safetensors", "numpy", "sklearn", "plotly", "matplotlib"})


@contextmanager
def extras_for(command: str) -> Iterator[None]:
    """Around imports and calls that need the ``ray`` extra.

    Raises:
        MissingExtraError: one of its packages is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _IN_RAY_EXTRA:
            raise
        raise MissingExtraError(
            f"hdet {command} needs {package}, which is not installed; run: pip install 'hdet-ray[ray]'"
        ) from error
