"""Moves what was committed from the write-ahead log into the database, beside the writer.

SQLite would do it inside some commit, every thousand pages: that one exchange would wait for all of
it. Here a thread of its own does it while the writer goes on appending.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

logger = logging.getLogger(__name__)

EVERY_S = 1.0
MAX_LOG_PAGES = 8192
"""32 MiB: where a busy writer never leaves a gap to begin the log anew, it is made to wait for one."""

_PATIENCE_S = 0.1
"""For that gap, in seconds: the writer waits as long, if a slow reader (a backup) is still on the log."""


class Checkpointer:
    """Checkpoints now and then, where there was a commit.

    Args:
        path: The database.
        every_s: Between two checkpoints, in seconds.
        max_log_pages: Above this the log must begin anew.
    """

    def __init__(
        self,
        path: Path,
        every_s: float = EVERY_S,
        max_log_pages: int = MAX_LOG_PAGES,
    ) -> None:
        self._path = path
        self._every_s = every_s
        self._max_log_pages = max_log_pages
        self._has_commits = False
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hdet-store-checkpoint", daemon=True)
        self._thread.start()

    def note_commit(self) -> None:
        """There is something to move."""
        self._has_commits = True

    def close(self) -> None:
        """End the thread; the last connection that closes moves the rest."""
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_over.wait(self._every_s):
            if self._has_commits:
                self._has_commits = False
                try:
                    self._checkpoint()
                except sqlite3.Error as error:
                    # Nothing is lost: the log keeps it. A full disk may have space again the next time.
                    logger.warning("checkpoint of %s failed: %s", self._path, error)
                    self._has_commits = True

    def _checkpoint(self) -> None:
        with closing(sqlite3.connect(self._path, timeout=_PATIENCE_S)) as connection:
            connection.execute("PRAGMA synchronous=FULL")
            _, num_pages, _ = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            if num_pages > self._max_log_pages:
                connection.execute("PRAGMA wal_checkpoint(RESTART)")
