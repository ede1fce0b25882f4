"""The store: one SQLite database, one thread that writes, a few that read.

Writes that wait are committed together, so sixteen jobs that report at once cost one `fsync`. Each
write has a SAVEPOINT of its own: one that fails takes nothing of the others with it. Nobody is told
that a write succeeded before its commit is on the disk.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

from sqlalchemy import Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.orm import Session

from hdet_service.store.checkpointer import EVERY_S, Checkpointer
from hdet_service.store.errors import StoreClosedError, StoreError, StorePlaceError, translated
from hdet_service.store.ids import Ids
from hdet_service.store.lock import DatabaseLock
from hdet_service.store.schema import check_known, migrate, version_of
from hdet_service.store.writer import CommitListener, Writer

T = TypeVar("T")

NUM_READERS = 4
BUSY_TIMEOUT_S = 5.0
"""How long a write waits for another program that holds SQLite's write lock."""

_to_json = partial(json.dumps, allow_nan=False, separators=(",", ":"))


class Store:
    """One SQLite database (WAL, ``synchronous=FULL``, foreign keys on) that this process owns.

    A function given to `write` or `read` gets a `Session` and uses the models; what it returns stays
    readable after the session has gone. It must be short, and must neither commit nor roll back.
    """

    def __init__(
        self,
        path: Path,
        lock: DatabaseLock,
        *,
        clock: Callable[[], float],
        group_writes: bool,
        busy_timeout_s: float,
        checkpoint_every_s: float,
    ) -> None:
        self.path = path
        self.clock = clock
        self._lock = lock
        self._closing = threading.Lock()
        self._is_closed = False
        self._reading = _engine(path, "BEGIN", busy_timeout_s, pool_size=NUM_READERS, is_reader=True)
        self._writing = _engine(path, "BEGIN IMMEDIATE", busy_timeout_s, pool_size=1)
        # Before any thread starts: this may find the database damaged.
        self._ids = Ids(clock, newest=self.read_sync(Ids.newest_of))
        self._readers = ThreadPoolExecutor(NUM_READERS, thread_name_prefix="hdet-store-read")
        self._checkpointer = Checkpointer(path, checkpoint_every_s)
        self._writer = Writer(
            self._writing, path, group_writes=group_writes, after_commit=self._checkpointer.note_commit
        )

    @classmethod
    def open(
        cls,
        url_or_path: str | Path,
        *,
        clock: Callable[[], float] = time.time,
        group_writes: bool = True,
        busy_timeout_s: float = BUSY_TIMEOUT_S,
        checkpoint_every_s: float = EVERY_S,
    ) -> Self:
        """Take the lock, bring the schema up to date, and start the threads.

        Args:
            url_or_path: A path, or ``sqlite:///path``. What isn't there is made, folder included.
            clock: Seconds since the epoch, UTC.
            group_writes: Commit what waits together; without, each write pays its own `fsync`.
            busy_timeout_s: How long to wait for another program's write, in seconds.
            checkpoint_every_s: Between two moves of the write-ahead log into the database, in seconds.

        Raises:
            StoreLockedError: Another controller owns it; its pid and host are named.
            StoreNewerError: A newer version wrote it.
            StoreBusyError: Another program holds SQLite's lock.
            StoreFullError: No space left.
            StoreDamagedError: The file is no database, or is damaged.
            StorePlaceError: Unknown URL, a folder that can't be written, another program's database.
        """
        path = database_path(url_or_path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise translated(error, path) from error
        lock = DatabaseLock(path, clock)
        try:
            path.touch(mode=0o600, exist_ok=True)  # it holds hashes of tokens: for its owner alone
            check_known(version_of(path, busy_timeout_s), path)  # before anything of the file is changed
            _use_wal(path, busy_timeout_s)
            migrate(path, busy_timeout_s)
            return cls(
                path,
                lock,
                clock=clock,
                group_writes=group_writes,
                busy_timeout_s=busy_timeout_s,
                checkpoint_every_s=checkpoint_every_s,
            )
        except StoreError:
            lock.release()
            raise
        except Exception as error:
            lock.release()
            raise translated(error, path) from error

    def write_sync(self, fn: Callable[[Session], T]) -> T:
        """Run ``fn`` in the writer's thread and return once its commit is on the disk.

        Raises:
            StoreFullError: No space is left; nothing was applied.
            StoreBusyError: Another program holds the lock; nothing was applied.
            StoreIOError: The disk refused; nothing was applied.
            StoreClosedError: The store was closed.
            Exception: What ``fn`` raised; what it had written is gone, other writes are not.
        """
        if self._writer.is_own_thread:
            raise StoreError("a write can't wait for another write; use the session that it was given")
        return self._writer.submit(fn).result()

    async def write(self, fn: Callable[[Session], T]) -> T:
        """`write_sync` for coroutines; a write that is canceled before its turn does not happen."""
        return await asyncio.wrap_future(self._writer.submit(fn))

    def read_sync(self, fn: Callable[[Session], T]) -> T:
        """Run ``fn`` in this thread on one consistent picture of the database.

        Raises:
            StoreError: The database can't be read, or the store was closed.
            Exception: What ``fn`` raised.
        """
        if self._is_closed:
            raise _closed(self.path)
        try:
            with Session(self._reading, expire_on_commit=False) as session:
                return fn(session)
        except Exception as error:
            told = translated(error, self.path)
            if told is error:
                raise
            raise told from error

    async def read(self, fn: Callable[[Session], T]) -> T:
        """`read_sync` in one of the readers' threads."""
        if self._is_closed:
            raise _closed(self.path)
        return await asyncio.get_running_loop().run_in_executor(self._readers, self.read_sync, fn)

    def on_commit(self, listener: CommitListener) -> None:
        """Have ``listener(session.info)`` called after each commit, once per write that left something there.

        It runs in the writer's thread, in the order of the writes, before the writes' callers go on:
        it must hand over and return, as with ``loop.call_soon_threadsafe``.
        """
        self._writer.listeners.append(listener)

    def new_id(self) -> str:
        """A ULID above all ids of jobs and overrides so far, whatever the clock does."""
        return self._ids.next()

    def close(self) -> None:
        """Commit what waits, end the threads, and give up the lock; may be called twice."""
        with self._closing:
            if self._is_closed:
                return
            self._writer.close()
            self._checkpointer.close()
            self._is_closed = True
            self._readers.shutdown()
            self._reading.dispose()
            self._writing.dispose()
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def database_path(url_or_path: str | Path) -> Path:
    """The file that a URL or a path names.

    Raises:
        StorePlaceError: Another database than SQLite, one in memory, or nothing at all.
    """
    text = str(url_or_path)
    if "://" not in text:
        name: str | None = text
    else:
        try:
            url = make_url(text)
        except ArgumentError as error:
            raise StorePlaceError(
                "the database's URL can't be read; use a path, or sqlite:////absolute/path/hdet.db"
            ) from error
        if url.get_backend_name() != "sqlite":
            raise StorePlaceError(
                f"database {url.render_as_string(hide_password=True)!r}: this release keeps its state in "
                "SQLite only; use a path, or sqlite:////absolute/path/hdet.db"
            )
        name = url.database
    if not name or name == "." or ":memory:" in name or name.startswith("file:"):
        raise StorePlaceError(
            f"database {text!r} would be gone with the process, or names no file; use a path, or "
            "sqlite:////absolute/path/hdet.db"
        )
    return Path(name).absolute()


def _engine(
    path: Path, begin: str, busy_timeout_s: float, *, pool_size: int, is_reader: bool = False
) -> Engine:
    """An engine whose transactions begin with ``begin``, as SQLite's driver would not by itself."""
    engine = create_engine(
        f"sqlite:///{path}",
        json_serializer=_to_json,
        pool_size=pool_size,
        max_overflow=-1,
        connect_args={"check_same_thread": False, "timeout": busy_timeout_s},
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: object) -> None:
        connection.isolation_level = None
        for pragma in (
            "synchronous=FULL",
            "foreign_keys=ON",
            f"busy_timeout={round(busy_timeout_s * 1000)}",
            "temp_store=MEMORY",
            "wal_autocheckpoint=0",  # see Checkpointer
            f"journal_size_limit={64 << 20}",
            f"query_only={'ON' if is_reader else 'OFF'}",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin_transaction(connection: Any) -> None:
        connection.exec_driver_sql(begin)

    return engine


def _use_wal(path: Path, busy_timeout_s: float) -> None:
    """Switch to write-ahead logging: it stays in the file."""
    with closing(sqlite3.connect(path, timeout=busy_timeout_s)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")


def _closed(path: Path) -> StoreClosedError:
    return StoreClosedError(f"the store of {path} was closed; open it again with Store.open")
