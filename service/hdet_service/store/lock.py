"""One controller a database: whoever holds the lock file's `flock` owns it.

The kernel lets go of the lock when its holder dies, however it dies, so there is no stale lock to
clean up. The file's text only tells who holds it; the file itself is never deleted, because a lock
on a deleted file keeps nobody out.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
import weakref
from collections.abc import Callable
from pathlib import Path

from hdet_service.store.errors import StoreLockedError, translated


class DatabaseLock:
    """The right to write a database, until `release` or the end of this process.

    Args:
        database: The database's file; the lock lies beside it, as ``<name>.lock``.
        clock: Seconds since the epoch, UTC; for the note of who holds it since when.

    Raises:
        StoreLockedError: Another process, or another store of this one, holds it.
        StorePlaceError: The lock file can't be made there.
    """

    def __init__(self, database: Path, clock: Callable[[], float] = time.time) -> None:
        self.path = database.with_name(database.name + ".lock")
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise translated(error, self.path) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = _holder(self._file)
            os.close(self._file)
            raise StoreLockedError(
                f"{database} belongs to a running controller ({holder}); stop that one first, or give this "
                "one a home of its own"
            ) from error
        except OSError as error:  # a file system without locks
            os.close(self._file)
            raise translated(error, self.path) from error
        self._is_held = True
        _held.add(self)
        self._write_note({"pid": os.getpid(), "host": socket.gethostname(), "since_s": clock()})

    def release(self) -> None:
        """Let the next one in; may be called twice."""
        if self._is_held:
            self._is_held = False
            _held.discard(self)
            os.ftruncate(self._file, 0)
            # Not by closing alone: a child that is just being forked still has its copy open.
            fcntl.flock(self._file, fcntl.LOCK_UN)
            os.close(self._file)

    def _forget(self) -> None:
        """In a forked child: close its copy, or the lock would live as long as the child."""
        self._is_held = False
        os.close(self._file)

    def _write_note(self, note: dict[str, object]) -> None:
        text = json.dumps(note).encode()
        try:
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, text, 0)
        except OSError as error:
            self.release()
            raise translated(error, self.path) from error


_held: weakref.WeakSet[DatabaseLock] = weakref.WeakSet()


def _forget_all() -> None:
    for lock in list(_held):
        lock._forget()
    _held.clear()


os.register_at_fork(after_in_child=_forget_all)


def _holder(file: int) -> str:
    """Who says to hold it; the note may not be written yet, or be cut."""
    try:
        note = json.loads(os.pread(file, 4096, 0))
        return f"pid {int(note['pid'])} on host {note['host']}"
    except (ValueError, KeyError, TypeError):
        return "it is just starting"
