"""The book of a rehearsal: which faults have happened, and how far the run has come.

It lies in a folder that all nodes see. A fault is entered before it happens, by a file that only one
process can make: so it happens once, however often the workers start again.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hdet_ray.exceptions import ConfigError
from hdet_ray.testing.faults import Fault, faults_to_json

LINES_FILE = "happened.jsonl"
_PROGRESS_FILE = "progress"
_PROGRESS_DIGITS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Happened:
    """One fault that has happened."""

    number: int
    """Its place in the list of faults."""
    fault: dict[str, Any]
    """As `faults_to_json` writes it."""
    rank: int | None
    """The rank that it happened to; None: it was done from the driver."""
    num_ranks: int | None
    """How many there were."""
    step: int
    round: int
    node: str
    pid: int
    """Of the process that did it."""
    at_s: float
    """Unix time."""


class Book:
    """One folder's book.

    Args:
        folder: Made where missing.

    Raises:
        ConfigError: the folder can't be written.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"folder={os.fspath(folder)!r} can't be written ({error}); name one that all nodes see"
            ) from error
        self._progress: int | None = None
        self._told: tuple[int, int] | None = None

    def has(self, number: int) -> bool:
        """The fault of this number has happened, or is about to."""
        return self._mark(number).exists()

    def enter(
        self, number: int, fault: Fault, *, rank: int | None, num_ranks: int | None, step: int, round: int
    ) -> bool:
        """Write a fault down before it happens.

        Returns:
            Whether it may happen: False where another process was first.
        """
        try:
            os.close(os.open(self._mark(number), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        except FileExistsError:
            return False
        happened = Happened(
            number=number,
            fault=faults_to_json([fault])[0],
            rank=rank,
            num_ranks=num_ranks,
            step=step,
            round=round,
            node=socket.gethostname(),
            pid=os.getpid(),
            at_s=time.time(),
        )
        line = json.dumps(asdict(happened)) + "\n"
        file = os.open(self.folder / LINES_FILE, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o644)
        try:
            os.write(file, line.encode())  # in one piece: others append too
            os.fsync(file)
        finally:
            os.close(file)
        return True

    def tell_progress(self, step: int, round: int) -> None:
        """Say how far the run has come; a few microseconds."""
        if (step, round) == self._told:
            return
        if self._progress is None:
            self._progress = os.open(self.folder / _PROGRESS_FILE, os.O_CREAT | os.O_WRONLY, 0o644)
        os.pwrite(self._progress, f"{step:{_PROGRESS_DIGITS}d}{round:{_PROGRESS_DIGITS}d}".encode(), 0)
        self._told = (step, round)

    def progress(self) -> tuple[int, int] | None:
        """Step and round that rank 0 has begun last; None before the first."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            text = (self.folder / _PROGRESS_FILE).read_text(encoding="ascii")
            return int(text[:_PROGRESS_DIGITS]), int(text[_PROGRESS_DIGITS:])
        return None

    def _mark(self, number: int) -> Path:
        return self.folder / f"fault-{number:04d}"


def read_happened(folder: str | os.PathLike[str]) -> list[Happened]:
    """What has happened so far, in the order in which it did; a line that is being written is left out."""
    path = Path(folder) / LINES_FILE
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return [Happened(**json.loads(line)) for line in text[: text.rfind("\n") + 1].splitlines()]


def newest_progress(folder: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Step and round that the run has begun last, as its injector wrote them; None before the first."""
    return Book(folder).progress()
