"""The one thread that writes: whatever waits goes into one transaction, each write in a SAVEPOINT.

While one commit waits for the disk the next writes gather, so the busier it is, the more of them
share an `fsync`; a lone write never waits for company.
"""

from __future__ import annotations

import logging
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from hdet_service.store.errors import StoreClosedError, translated
from hdet_service.store.models import Job

logger = logging.getLogger(__name__)

T = TypeVar("T")

CommitListener = Callable[[dict[Any, Any]], None]

MAX_GROUP = 64
"""Writes in one transaction: bounds what the first of them waits for the others' work."""


@dataclass(slots=True, eq=False)
class _Write:
    """One write on its way; what it returned is handed out after the commit only."""

    fn: Callable[[Session], Any]
    future: Future[Any] = field(default_factory=Future)
    result: Any = None
    info: dict[Any, Any] = field(default_factory=dict)


class WriteSession(Session):
    """A job is inserted as soon as it is added: rows that point to it may follow in the same write.

    The models have no relationships, which would order the inserts and cost each exchange a third more.
    """

    def add(self, instance: object, *, _warn: bool = True) -> None:
        """See `Session.add`."""
        super().add(instance, _warn=_warn)
        if isinstance(instance, Job):
            self.flush()


class _TransactionLostError(Exception):
    """SQLite gave up the whole transaction in the middle of a group (full disk, I/O error)."""


class Writer:
    """Runs writes in the order in which they came.

    Args:
        engine: Its connections begin with ``BEGIN IMMEDIATE``.
        path: The database's file, for messages.
        group_writes: Put what waits into one transaction.
        after_commit: Called after each commit, in the writer's thread.
    """

    def __init__(
        self, engine: Engine, path: Path, *, group_writes: bool, after_commit: Callable[[], None]
    ) -> None:
        self.listeners: list[CommitListener] = []
        self._engine = engine
        self._path = path
        self._after_commit = after_commit
        self._max_group = MAX_GROUP if group_writes else 1
        self._waiting: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._accepting = threading.Lock()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="hdet-store-write", daemon=True)
        self._thread.start()

    @property
    def is_own_thread(self) -> bool:
        """Whether the caller runs in the writer's thread."""
        return threading.current_thread() is self._thread

    def submit(self, fn: Callable[[Session], T]) -> Future[T]:
        """Queue a write; its future ends after the commit.

        Raises:
            StoreClosedError: The store was closed.
        """
        write = _Write(fn)
        with self._accepting:
            if self._is_closed:
                raise StoreClosedError(f"the store of {self._path} was closed; open it again with Store.open")
            self._waiting.put(write)
        return write.future

    def close(self) -> None:
        """Do what waits, then end the thread."""
        with self._accepting:
            self._is_closed = True
            self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        is_open = True
        while is_open:
            group, is_open = self._next_group()
            group = [write for write in group if write.future.set_running_or_notify_cancel()]
            while group:
                group = self._commit(group)

    def _next_group(self) -> tuple[list[_Write], bool]:
        """What waits, at least one; and whether there will be more."""
        group: list[_Write] = []
        write = self._waiting.get()
        while write is not None:
            group.append(write)
            if len(group) == self._max_group:
                return group, True
            try:
                write = self._waiting.get_nowait()
            except queue.Empty:
                return group, True
        return group, False

    def _commit(self, group: Sequence[_Write]) -> list[_Write]:
        """Run a group in one transaction and end its futures.

        Returns:
            Writes that did not get their turn, because the transaction was lost before.
        """
        done: list[_Write] = []
        left = list(group)
        try:
            with self._engine.connect() as connection:
                try:
                    with connection.begin():
                        while left:
                            write = left.pop(0)
                            if self._attempt(connection, write):
                                done.append(write)
                except BaseException:
                    # A connection whose transaction failed is not used again: its state is unknown.
                    connection.invalidate()
                    raise
        except _TransactionLostError as lost:
            self._fail(done, lost.__cause__ or lost)
            return left
        except BaseException as error:  # the thread must outlive whatever happens
            self._fail([*done, *left], error)
            return []
        self._after_commit()
        for write in done:
            self._tell(write)
        for write in done:
            write.future.set_result(write.result)
        return []

    def _attempt(self, connection: Connection, write: _Write) -> bool:
        """Run one write in its savepoint; False where it failed and was undone, its caller told.

        Raises:
            _TransactionLostError: SQLite rolled back more than this write.
        """
        session = WriteSession(connection, join_transaction_mode="create_savepoint", expire_on_commit=False)
        try:
            write.result = write.fn(session)
            write.info = session.info
            session.commit()
        except BaseException as error:  # whatever it is, it is its caller's
            if not _is_in_transaction(connection):
                session.invalidate()  # its savepoint is gone too: there is nothing to roll back
                cause = _first_cause(error)
                write.future.set_exception(translated(cause, self._path))
                raise _TransactionLostError from cause
            session.rollback()
            write.future.set_exception(translated(error, self._path))
            session.close()
            return False
        session.close()
        return True

    def _fail(self, writes: Sequence[_Write], error: BaseException) -> None:
        told = translated(error, self._path)
        logger.error("%d writes failed together: %s", len(writes), told)
        for write in writes:
            write.future.set_exception(told)

    def _tell(self, write: _Write) -> None:
        if not write.info:
            return
        for listener in self.listeners:
            try:
                listener(write.info)
            except Exception:
                logger.exception("a listener of commits failed; the commit stands")


def _is_in_transaction(connection: Connection) -> bool:
    return bool(getattr(connection.connection.dbapi_connection, "in_transaction", False))


def _first_cause(error: BaseException) -> BaseException:
    """What SQLite said first; the session's own attempt to go back to its savepoint then failed too."""
    while error.__context__ is not None and isinstance(error.__context__, SQLAlchemyError | sqlite3.Error):
        error = error.__context__
    return error
