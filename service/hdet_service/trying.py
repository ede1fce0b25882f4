"""Work that is done again and again: one failure is said, and ends nothing."""

from __future__ import annotations

import logging
from types import TracebackType

from hdet_ray.exceptions import HDETError


class FailuresLogged:
    """Leave a block at its first error, and write it down: ours in a line, others with a traceback.

    Args:
        logger: Of the module that does the work.
        what: What has failed, in the logger's format.
        args: Of ``what``.
    """

    def __init__(self, logger: logging.Logger, what: str, *args: object) -> None:
        self._logger, self._what, self._args = logger, what, args

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if isinstance(error, HDETError):  # a full disk, a locked database: they may pass
            self._logger.error(f"{self._what}: %s", *self._args, error)
        elif isinstance(error, Exception):
            self._logger.exception(self._what, *self._args, exc_info=error)
        return isinstance(error, Exception)
