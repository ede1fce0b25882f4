"""Full disks, locked and foreign files, impossible places: a typed error, nothing half-applied."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from hdet_service.store.database import Store
from hdet_service.store.errors import (
    StoreBusyError,
    StoreDamagedError,
    StoreError,
    StoreFullError,
    StoreNewerError,
    StorePlaceError,
)
from hdet_service.store.models import Job
from tests.service.store_rows import count, make_job, read_line, start_child


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "hdet.db", busy_timeout_s=0.1) as opened:
        yield opened


def add(name: str, num_bytes: int = 0) -> Callable[[Session], None]:
    return lambda session: session.add(make_job(id=name, message="x" * num_bytes))


def allow_pages(more: int) -> Callable[[Session], None]:
    """Let the database grow by so many pages; SQLite then says what it says of a full disk."""

    def write(session: Session) -> None:
        pages = session.scalar(text("PRAGMA page_count")) or 0
        session.execute(text(f"PRAGMA max_page_count={pages + more}"))

    return write


def test_a_full_database_is_a_typed_error_and_space_heals_it(store: Store) -> None:
    store.write_sync(add("before"))
    store.write_sync(allow_pages(5))
    with pytest.raises(
        StoreFullError, match=r"no space is left for .*hdet\.db.*the service goes on by itself"
    ):
        store.write_sync(add("large", 1_000_000))
    assert store.read_sync(lambda session: count(session, Job)) == 1
    store.write_sync(add("small"))
    store.write_sync(allow_pages(1_000))
    store.write_sync(add("large", 1_000_000))
    assert store.read_sync(lambda session: count(session, Job)) == 3


_DISK_FILLS_UP = """
import resource, sys, threading
from concurrent.futures import ThreadPoolExecutor
from hdet_service.store.database import Store
from hdet_service.store.errors import StoreError
from hdet_service.store.models import Job
from tests.service.store_rows import count, make_job

store = Store.open(sys.argv[1])
store.write_sync(lambda session: session.add(make_job(id="before")))
used = store.path.with_name(store.path.name + "-wal").stat().st_size
no_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
held, go = threading.Event(), threading.Event()

def hold(session):
    held.set()
    go.wait(10)

futures = [store._writer.submit(hold)]
held.wait(10)
resource.setrlimit(resource.RLIMIT_FSIZE, (used + 40_000, no_limit[1]))
# Three writes of one group: only at the commit do their pages go to the disk.
add = lambda n: lambda session: session.add(make_job(id=f"job {n}", message="x" * 20_000))
futures = [store._writer.submit(add(n)) for n in range(3)]
go.set()
print(*(type(future.exception(10)).__name__ for future in futures))
print(store.read_sync(lambda session: count(session, Job)))
resource.setrlimit(resource.RLIMIT_FSIZE, no_limit)
store.write_sync(add(9))
print(store.read_sync(lambda session: count(session, Job)))
store.close()
"""


def test_a_commit_that_the_disk_refuses_fails_every_write_of_its_group_and_applies_none(
    tmp_path: Path,
) -> None:
    child = start_child(_DISK_FILLS_UP, tmp_path / "hdet.db")
    said = [read_line(child) for _ in range(3)]
    child.communicate(timeout=10)
    assert said == ["StoreIOError StoreIOError StoreIOError", "1", "2"]
    with Store.open(tmp_path / "hdet.db") as store:
        assert store.read_sync(lambda session: session.scalar(text("PRAGMA integrity_check"))) == "ok"
        assert store.read_sync(lambda session: count(session, Job)) == 2


def test_another_programs_write_lock_is_waited_for_and_then_named(store: Store) -> None:
    with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreBusyError, match=r"another program holds the write lock of .*hdet\.db"):
            store.write_sync(add("a"))
        assert store.read_sync(lambda session: count(session, Job)) == 0
        other.execute("ROLLBACK")
    store.write_sync(add("a"))
    assert store.read_sync(lambda session: count(session, Job)) == 1


def test_a_new_store_under_another_programs_lock_is_refused_by_name(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "hdet.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreBusyError, match="another program holds the write lock"):
            Store.open(tmp_path / "hdet.db", busy_timeout_s=0.1)


def test_a_database_of_a_newer_version_is_refused_with_both_versions_and_stays_as_it_is(
    tmp_path: Path,
) -> None:
    path = tmp_path / "hdet.db"
    Store.open(path).close()
    with closing(sqlite3.connect(path)) as other, other:
        other.execute("UPDATE alembic_version SET version_num = '0999'")
    before = path.read_bytes()
    with pytest.raises(
        StoreNewerError, match=r"has schema 0999; this release knows schemas up to 0002: install"
    ):
        Store.open(path)
    assert path.read_bytes() == before


def test_a_file_that_is_no_database_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "hdet.db"
    path.write_text("a letter " * 1000)
    with pytest.raises(StoreDamagedError, match="is no database or is damaged"):
        Store.open(path)
    assert path.read_text() == "a letter " * 1000


def test_another_programs_database_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "hdet.db"
    with closing(sqlite3.connect(path)) as other, other:
        other.execute("CREATE TABLE recipes (name TEXT)")
    before = path.read_bytes()
    with pytest.raises(StorePlaceError, match=r"tables of another program \(recipes\); choose another file"):
        Store.open(path)
    assert path.read_bytes() == before


def test_a_damaged_database_is_named_when_it_is_met(tmp_path: Path) -> None:
    path = tmp_path / "hdet.db"
    with Store.open(path) as store:
        store.write_sync(lambda session: session.add_all(make_job(id=f"{n:04}") for n in range(500)))
    content = bytearray(path.read_bytes())
    content[4096 * 3 :] = b"\xff" * (len(content) - 4096 * 3)
    path.write_bytes(content)
    with pytest.raises(StoreDamagedError, match="hdet restore"):  # noqa: SIM117  # at opening, or at the first use
        with Store.open(path) as store:
            store.read_sync(lambda session: session.query(Job).all())


@pytest.mark.parametrize(
    "url",
    [
        "",
        ".",
        ":memory:",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///file::memory:?cache=shared",
        "postgresql://user:secret@host/hdet",
        "sqlite:///",
        "no url at all://",
    ],
)
def test_a_place_that_keeps_nothing_or_is_unknown_is_refused_with_the_remedy(url: str) -> None:
    with pytest.raises(StorePlaceError, match="use a path, or sqlite:////absolute/path") as refusal:
        Store.open(url)
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize("place", ["/proc/hdet/hdet.db", "file/hdet.db", "folder"])
def test_a_folder_that_can_not_hold_it_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorePlaceError, match=r"can't be (used|opened for writing)"):
        Store.open(tmp_path / place)


def test_every_error_of_the_store_is_one_tree() -> None:
    for kind in (StoreBusyError, StoreDamagedError, StoreFullError, StoreNewerError, StorePlaceError):
        assert issubclass(kind, StoreError)
