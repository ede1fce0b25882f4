"""What is behind a failed run: Ray wraps what a worker raised, sometimes several times."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from typing import Any

from hdet_ray.exceptions import HDETError


def own_error(error: BaseException) -> HDETError | None:
    """The library's error behind Ray's, if there is one: several ranks raise the same."""
    return next((cause for cause in _causes(error) if isinstance(cause, HDETError)), None)


def last_line(error: BaseException) -> str:
    """The end of a traceback: that of the first cause that isn't Ray's wrapping."""
    root = next((cause for cause in _causes(error) if not _is_rays(cause)), error)
    text = "".join(traceback.format_exception_only(root))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else type(root).__name__


def _is_rays(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] == "ray"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and all that stands behind it, outermost first."""
    todo: list[Any] = [error]
    seen: set[int] = set()
    while todo:
        current = todo.pop(0)
        if not isinstance(current, BaseException) or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        todo += [current.__cause__, current.__context__, *vars(current).values()]
        todo += getattr(current, "worker_failures", {}).values()
