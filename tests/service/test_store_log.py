"""The write-ahead log is moved into the database beside the writer, and stays bounded under load."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from sqlalchemy.orm import Session

from hdet_service.store.checkpointer import Checkpointer
from hdet_service.store.database import Store
from hdet_service.store.models import Job
from tests.service.store_rows import count, make_job

PAGE_BYTES = 4096
NEVER_S = 1000.0


def add(name: str, num_pages: int = 0) -> Callable[[Session], None]:
    return lambda session: session.add(make_job(id=name, message="x" * num_pages * PAGE_BYTES))


def pages_of(path: Path) -> int:
    return path.stat().st_size // PAGE_BYTES


def log_of(store: Store) -> Path:
    return store.path.with_name(store.path.name + "-wal")


def wait_until(is_so: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(2000):
        if is_so():
            return
        pause.wait(0.01)
    raise AssertionError("it did not come to that within 20 s")


def test_no_commit_waits_for_the_log_to_be_moved(tmp_path: Path) -> None:
    with Store.open(tmp_path / "hdet.db", checkpoint_every_s=NEVER_S) as store:
        before = pages_of(store.path)
        for n in range(20):
            store.write_sync(add(str(n), 100))
        assert pages_of(store.path) == before
    assert pages_of(tmp_path / "hdet.db") > before + 1900, "closing moves the rest"


def test_what_was_committed_is_moved_while_the_writer_goes_on(tmp_path: Path) -> None:
    with Store.open(tmp_path / "hdet.db", checkpoint_every_s=0.01) as store:
        before = pages_of(store.path)
        store.write_sync(add("a", 100))
        wait_until(lambda: pages_of(store.path) > before + 90)
        store.write_sync(add("b"))
        assert store.read_sync(lambda session: count(session, Job)) == 2


def test_the_log_begins_anew_where_a_busy_writer_leaves_no_gap(tmp_path: Path) -> None:
    with Store.open(tmp_path / "hdet.db", checkpoint_every_s=NEVER_S) as store:
        bounded = Checkpointer(store.path, every_s=0.01, max_log_pages=100)
        for n in range(200):
            store.write_sync(add(f"{n:03}", 20))
            bounded.note_commit()
        bounded.close()
        assert pages_of(log_of(store)) < 200 * 20
        assert store.read_sync(lambda session: count(session, Job)) == 200


def test_a_slow_reader_keeps_its_picture_and_holds_up_no_writer_for_long(tmp_path: Path) -> None:
    with Store.open(tmp_path / "hdet.db", checkpoint_every_s=NEVER_S, busy_timeout_s=2.0) as store:
        bounded = Checkpointer(store.path, every_s=0.01, max_log_pages=100)
        store.write_sync(add("a"))

        def read(session: Session) -> tuple[int, int]:
            first = count(session, Job)
            for n in range(5):
                store.write_sync(add(str(n), 100))
                bounded.note_commit()
            return first, count(session, Job)

        assert store.read_sync(read) == (1, 1)
        bounded.close()
        assert store.read_sync(lambda session: count(session, Job)) == 6
