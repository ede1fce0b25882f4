"""Kept output of drivers: ``logs/<job>/<submission>.log`` in the service's home, copied from Ray's session.

Ray's own files go with its session folder, and its API forgets them with the head. A copy is a plain prefix
of its source, so its size alone says where to go on, also after a crash. Where the source was truncated or
replaced, a line says so and the copy goes on below it.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from hdet_ray.exceptions import ConfigError
from hdet_service.starter import PREFIX, DriverState

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 20
_FINGERPRINT_BYTES = 64
_MAX_LINE_BYTES = 64 << 10
"""A longer line is handed out in pieces."""
_REPLACED = b"\n[hdet: the output before this line was replaced at its source]\n"
_FULL = b"\n[hdet: more output than is kept; the rest is left out]\n"


@dataclass(frozen=True, slots=True, order=True)
class LogPosition:
    """A place in a job's output: which driver's, and how many bytes into it."""

    submission: int = 0
    offset: int = 0

    def __str__(self) -> str:
        return f"{self.submission}:{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a position back.

        Raises:
            ConfigError: it isn't one.
        """
        first, _, second = text.partition(":")
        if not (first.isdecimal() and second.isdecimal() and len(text) < 40):
            raise ConfigError(
                f"log position {text[:40]!r} is none; take one from an earlier answer, or leave it out"
            )
        return cls(int(first), int(second))


LOG_START = LogPosition()


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line, without its end."""

    submission: int
    text: str
    position: LogPosition
    """Right after it: what to ask for next."""


@dataclass(frozen=True, slots=True)
class _Source:
    """What a copy's bytes stand for, from ``base`` on: the source from its start."""

    base: int = 0
    is_full: bool = False


class Logs:
    """Copies and reads.

    Args:
        folder: Where the copies lie.
        max_bytes: Kept of one driver's output.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._deleted: set[str] = set()

    # ---- copying

    def copy_all(self, drivers: Mapping[str, DriverState]) -> None:
        """Take over what drivers have written since the last time; what fails is tried again next time."""
        for submission_id, driver in drivers.items():
            if driver.log_path is None:
                continue
            try:
                self.copy(submission_id, driver.log_path)
            except OSError as error:
                logger.warning("output not copied: submission=%s cause=%s", submission_id, error)

    def copy(self, submission_id: str, source: Path) -> int:
        """Append what is new in ``source``; returns the number of bytes.

        Raises:
            OSError: the disk is full, or the source can't be read.
        """
        job_id, submission = split_id(submission_id)
        if job_id in self._deleted or not source.is_file():
            return 0
        target = self._path(job_id, submission)
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        state = _read_state(target)
        if state.is_full:
            return 0
        with source.open("rb") as reader, target.open("ab+") as writer:
            before = size = writer.seek(0, os.SEEK_END)
            if not _is_prefix(reader, writer, state.base, size):
                writer.write(_REPLACED)
                writer.flush()
                size += len(_REPLACED)
                state = _Source(base=size)
                _write_state(target, state)
            reader.seek(size - state.base)
            while size < self._max_bytes and (
                chunk := reader.read(min(_CHUNK_BYTES, self._max_bytes - size))
            ):
                writer.write(chunk)
                size += len(chunk)
            if size >= self._max_bytes and reader.read(1):
                writer.write(_FULL)
                writer.flush()
                _write_state(target, _Source(base=state.base, is_full=True))
        return size - before

    def has_all(self, submission_id: str, source: Path | None) -> bool:
        """Whether the copy holds all that there is."""
        job_id, submission = split_id(submission_id)
        if source is None or job_id in self._deleted or not source.is_file():
            return True
        target = self._path(job_id, submission)
        if not target.is_file():
            return False
        state = _read_state(target)
        return state.is_full or target.stat().st_size - state.base >= source.stat().st_size

    def delete(self, job_id: str) -> None:
        """Delete a job's copies, and copy no more of it."""
        self._deleted.add(job_id)
        shutil.rmtree(self._folder / job_id, ignore_errors=True)

    def prune(self, job_ids: Collection[str]) -> None:
        """Delete the copies of jobs that are not among these."""
        if not self._folder.is_dir():
            return
        for entry in self._folder.iterdir():
            if entry.name not in job_ids:
                shutil.rmtree(entry, ignore_errors=True)

    # ---- reading

    def read(
        self,
        job_id: str,
        after: LogPosition = LOG_START,
        *,
        limit: int = 1000,
        is_final: bool = False,
    ) -> list[LogLine]:
        """The lines after a position, over all of a job's drivers, in order.

        Args:
            job_id: The job.
            after: Where the last reading ended.
            limit: At most so many lines.
            is_final: Nothing more will be written: a last line without an end counts too.
        """
        submissions = [number for number in self.submissions(job_id) if number >= after.submission]
        lines: list[LogLine] = []
        for number in submissions:
            offset = after.offset if number == after.submission else 0
            is_closed = is_final or number != submissions[-1]
            for line in self._lines(job_id, number, offset, is_closed):
                if len(lines) == limit:
                    return lines
                lines.append(line)
        return lines

    def submissions(self, job_id: str) -> list[int]:
        """Drivers whose output is kept, in order."""
        folder = self._folder / job_id
        if "/" in job_id or not folder.is_dir():
            return []
        return sorted(int(path.stem) for path in folder.glob("*.log") if path.stem.isdecimal())

    def end(self, job_id: str) -> LogPosition:
        """Where a job's output ends now."""
        submissions = self.submissions(job_id)
        if not submissions:
            return LOG_START
        return LogPosition(submissions[-1], self._path(job_id, submissions[-1]).stat().st_size)

    def last_line(self, job_id: str, submission: int) -> str:
        """The last line with something in it that a driver wrote; empty where there is none."""
        path = self._path(job_id, submission)
        if not path.is_file():
            return ""
        with path.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - _MAX_LINE_BYTES))
            tail = stream.read().decode("utf-8", "replace")
        lines = [line.strip() for line in tail.splitlines() if line.strip()]
        return lines[-1][-500:] if lines else ""

    def _lines(self, job_id: str, number: int, offset: int, is_closed: bool) -> Iterator[LogLine]:
        with self._path(job_id, number).open("rb") as stream:
            stream.seek(offset)
            while raw := stream.readline(_MAX_LINE_BYTES):
                if not raw.endswith(b"\n") and len(raw) < _MAX_LINE_BYTES and not is_closed:
                    return
                raw = _whole_characters(raw)
                offset += len(raw)
                stream.seek(offset)
                text = raw.decode("utf-8", "replace").removesuffix("\n").removesuffix("\r")
                yield LogLine(number, text, LogPosition(number, offset))

    def _path(self, job_id: str, submission: int) -> Path:
        return self._folder / job_id / f"{submission}.log"


def split_id(submission_id: str) -> tuple[str, int]:
    """Job and number of one of our submissions' ids."""
    job_id, _, number = submission_id.removeprefix(PREFIX).rpartition("-")
    return job_id, int(number)


def _is_prefix(reader: object, writer: object, base: int, size: int) -> bool:
    """Whether the copy's bytes from ``base`` on still open the source, as far as its end tells."""
    copied = size - base
    length = min(_FINGERPRINT_BYTES, copied)
    if length == 0:
        return True
    ours, theirs = _at(writer, size - length, length), _at(reader, copied - length, length)
    return ours == theirs


def _at(stream: object, offset: int, length: int) -> bytes:
    stream.seek(offset)  # type: ignore[attr-defined]
    data: bytes = stream.read(length)  # type: ignore[attr-defined]
    return data


def _whole_characters(raw: bytes) -> bytes:
    """A piece of a line is not cut inside a character."""
    if raw.endswith(b"\n"):
        return raw
    for cut in range(1, min(4, len(raw))):
        byte = raw[-cut]
        if byte & 0xC0 == 0xC0:  # opens a character of so many bytes
            needed = 2 + (byte >= 0xE0) + (byte >= 0xF0)
            return raw[:-cut] if cut < needed else raw
        if byte & 0x80 == 0:
            break
    return raw


def _state_path(target: Path) -> Path:
    return target.with_suffix(".source.json")


def _read_state(target: Path) -> _Source:
    try:
        return _Source(**json.loads(_state_path(target).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return _Source()
    except (ValueError, TypeError):
        return _Source(base=target.stat().st_size if target.is_file() else 0)


def _write_state(target: Path, state: _Source) -> None:
    draft = _state_path(target).with_suffix(".tmp")
    draft.write_text(json.dumps({"base": state.base, "is_full": state.is_full}), encoding="utf-8")
    draft.replace(_state_path(target))
