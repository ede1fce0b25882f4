"""What can go wrong with the database, as types: each message says what to do about it.

SQLite tells most of it by number; `translated` turns those numbers into the types.
"""

from __future__ import annotations

import errno
import sqlite3
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from hdet_ray.exceptions import HDETError


class StoreError(HDETError, RuntimeError):
    """Root of the store's errors."""


class StoreLockedError(StoreError):
    """Another controller owns the database."""


class StoreBusyError(StoreError):
    """Another program holds SQLite's write lock for longer than we wait."""


class StoreFullError(StoreError):
    """No space is left; nothing of the write was applied."""


class StoreIOError(StoreError):
    """The disk refused to read or write; nothing of the write was applied."""


class StoreNewerError(StoreError):
    """A newer version wrote the database or the backup."""


class StoreDamagedError(StoreError):
    """The file is no database, or is damaged."""


class StorePlaceError(StoreError, ValueError):
    """The database can't be there: an unknown URL, a folder that can't be written, another program's file."""


class StoreClosedError(StoreError):
    """The store was closed."""


class BackupError(StoreError):
    """A backup can't be taken, or what is given is no backup that can be restored."""


_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_REFUSED = frozenset({sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM})


def translated(error: BaseException, path: Path) -> BaseException:
    """The store's own error for what SQLite or the operating system said; others come back unchanged."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, sqlite3.Error):
        return _of_sqlite(cause, path) or error
    if isinstance(cause, OSError) and not isinstance(cause, StoreError):
        return _of_system(cause, path)
    return error


def _of_sqlite(cause: sqlite3.Error, path: Path) -> StoreError | None:
    # The low byte is the primary code; the rest says which file operation it was.
    code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return full(path)
    if code in _BUSY:
        return StoreBusyError(
            f"another program holds the write lock of {path}; end it (sqlite3 shells and copies of the "
            "file by other tools are the usual ones) and try again"
        )
    if code in _DAMAGED:
        return StoreDamagedError(
            f"{path} is no database or is damaged ({cause}); restore a backup with `hdet restore`"
        )
    if code in _REFUSED:
        return StorePlaceError(f"{path} can't be opened for writing ({cause}); check its folder and its mode")
    if code == sqlite3.SQLITE_IOERR:
        return StoreIOError(
            f"reading or writing {path} failed ({cause.sqlite_errorname}); nothing was applied: check the "
            "disk and its free space, then try again"
        )
    return None


def _of_system(cause: OSError, path: Path) -> StoreError:
    if cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return full(path)
    if cause.errno == errno.EIO:
        return StoreIOError(f"reading or writing {path} failed ({cause}); check the disk, then try again")
    return StorePlaceError(
        f"{path} can't be used ({cause}); choose a folder that exists or can be made, and that can be written"
    )


def full(path: Path) -> StoreFullError:
    """No space: said the same way wherever it is found."""
    return StoreFullError(
        f"no space is left for {path}; nothing of this write was applied. Free some space on that disk: "
        "the service goes on by itself"
    )
