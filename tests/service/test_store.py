"""The store keeps what it acknowledged, keeps writes apart, and says clearly what is wrong."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from hdet_service.store.database import Store
from hdet_service.store.errors import StoreClosedError, StoreError
from hdet_service.store.models import Counter, Job, JobLabel
from tests.service.store_rows import count, make_job, read_line, start_child


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "hdet.db", clock=lambda: 1000.0) as opened:
        yield opened


def add(name: str) -> Callable[[Session], None]:
    return lambda session: session.add(make_job(id=name))


def seen_from_outside(store: Store) -> list[str]:
    """Ids of the jobs that another connection sees: what is committed."""
    with closing(sqlite3.connect(store.path)) as connection:
        return [id for (id,) in connection.execute("SELECT id FROM jobs ORDER BY id")]


def in_one_group(store: Store, *writes: Callable[[Session], Any]) -> list[Future[Any]]:
    """Have writes wait together: the writer is held up until all of them are queued."""
    is_held, may_go = threading.Event(), threading.Event()

    def hold(session: Session) -> None:
        is_held.set()
        may_go.wait(10)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(store.write_sync, hold)
        assert is_held.wait(10)
        futures = [store._writer.submit(write) for write in writes]
        may_go.set()
    for future in futures:
        future.exception(10)
    return futures


def test_what_was_written_is_there_for_the_next_read(store: Store) -> None:
    written = store.write_sync(lambda session: session.merge(make_job(id="a", plan=None)))
    read = store.read_sync(lambda session: session.get_one(Job, "a"))
    assert (written.id, read.name, read.spec) == ("a", "digits", {"name": "digits", "entrypoint": "digits"})


def test_it_is_there_after_opening_again(tmp_path: Path) -> None:
    with Store.open(tmp_path / "new" / "folder" / "hdet.db") as store:
        store.write_sync(add("a"))
    with Store.open(f"sqlite:///{tmp_path}/new/folder/hdet.db") as store:
        assert store.read_sync(lambda session: count(session, Job)) == 1


def test_the_database_is_for_its_owner_alone(store: Store) -> None:
    assert store.path.stat().st_mode & 0o077 == 0


def test_each_connection_is_as_durable_and_strict_as_promised(store: Store) -> None:
    def settings(session: Session) -> list[object]:
        names = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        return [session.execute(text(f"PRAGMA {name}")).scalar() for name in names]

    assert store.write_sync(settings) == ["wal", 2, 1, 5000]
    assert store.read_sync(settings) == ["wal", 2, 1, 5000]


def test_a_reader_can_not_write(store: Store) -> None:
    def write(session: Session) -> None:
        session.add(make_job())
        session.flush()

    with pytest.raises(StoreError, match="can't be opened for writing"):
        store.read_sync(write)


def test_writes_that_wait_share_one_transaction_and_are_acknowledged_after_it(store: Store) -> None:
    during: dict[str, Any] = {}
    acknowledged: list[Future[Any]] = []

    def look(session: Session) -> None:
        session.add(make_job(id="b"))
        during["inside"] = count(session, Job)
        during["outside"] = seen_from_outside(store)

    def first(session: Session) -> None:
        session.add(make_job(id="a"))

    acknowledged += in_one_group(store, first, look)
    assert during == {"inside": 2, "outside": []}
    assert all(future.exception() is None for future in acknowledged)
    assert seen_from_outside(store) == ["a", "b"]


def test_no_write_is_acknowledged_before_its_commit(store: Store) -> None:
    seen: list[list[str]] = []
    future: Future[None] = store._writer.submit(add("a"))
    future.add_done_callback(lambda _: seen.append(seen_from_outside(store)))
    future.result(10)
    store.write_sync(lambda session: None)
    assert seen == [["a"]]


def test_a_write_that_fails_takes_nothing_of_the_others_with_it(store: Store) -> None:
    def fail(session: Session) -> None:
        session.add(make_job(id="lost"))
        session.flush()
        raise KeyError("mine")

    before, failed, after = in_one_group(store, add("a"), fail, add("b"))
    assert isinstance(failed.exception(), KeyError)
    assert before.exception() is None
    assert after.exception() is None
    assert seen_from_outside(store) == ["a", "b"]


def test_a_broken_constraint_is_its_writers_alone(store: Store) -> None:
    orphan = JobLabel(job_id="nobody", key="k", value="v")
    results = in_one_group(store, add("a"), add("a"), lambda session: session.add(orphan), add("b"))
    assert [type(future.exception()) for future in results] == [
        type(None), IntegrityError, IntegrityError, type(None)
    ]  # fmt: skip
    assert seen_from_outside(store) == ["a", "b"]


def test_without_grouping_each_write_has_its_own_commit(tmp_path: Path) -> None:
    with Store.open(tmp_path / "hdet.db", group_writes=False) as store:
        outside: list[list[str]] = []
        in_one_group(store, add("a"), lambda session: outside.append(seen_from_outside(store)))
        assert outside == [["a"]]


def test_a_read_is_one_picture_while_others_write(store: Store) -> None:
    def read(session: Session) -> tuple[int, int]:
        before = count(session, Job)
        store.write_sync(add("a"))
        return before, count(session, Job)

    assert store.read_sync(read) == (0, 0)
    assert store.read_sync(lambda session: count(session, Job)) == 1


def test_coroutines_write_and_read_at_the_same_time(store: Store) -> None:
    async def run() -> list[int]:
        await asyncio.gather(*(store.write(add(f"{n:03}")) for n in range(50)))
        return await asyncio.gather(*(store.read(lambda session: count(session, Job)) for _ in range(10)))

    assert asyncio.run(run()) == [50] * 10


def test_a_write_that_is_canceled_before_its_turn_does_not_happen(store: Store) -> None:
    is_held, may_go = threading.Event(), threading.Event()

    def hold(session: Session) -> None:
        is_held.set()
        may_go.wait(10)

    async def run() -> None:
        held = asyncio.create_task(store.write(hold))
        await asyncio.to_thread(is_held.wait, 10)
        late = asyncio.create_task(store.write(add("late")))
        await asyncio.sleep(0)  # let it queue
        late.cancel()
        with pytest.raises(asyncio.CancelledError):
            await late
        may_go.set()
        await held

    asyncio.run(run())
    store.write_sync(lambda session: None)
    assert seen_from_outside(store) == []


def test_a_write_that_waits_for_another_is_refused_instead_of_hanging(store: Store) -> None:
    with pytest.raises(StoreError, match="use the session that it was given"):
        store.write_sync(lambda session: store.write_sync(add("a")))


def test_listeners_hear_of_what_was_committed_in_order_and_of_nothing_else(store: Store) -> None:
    heard: list[tuple[str, int]] = []
    store.on_commit(lambda info: heard.append((info["events"], len(seen_from_outside(store)))))

    def leave(name: str, error: Exception | None = None) -> Callable[[Session], None]:
        def write(session: Session) -> None:
            session.add(make_job(id=name))
            session.info["events"] = name
            if error:
                raise error

        return write

    in_one_group(store, leave("a"), leave("lost", ValueError()), add("silent"), leave("b"))
    assert heard == [("a", 3), ("b", 3)]


def test_a_listener_that_fails_harms_no_write(store: Store) -> None:
    def listener(info: dict[Any, Any]) -> None:
        raise RuntimeError("mine")

    def write(session: Session) -> str:
        session.info["events"] = "a"
        return "written"

    store.on_commit(listener)
    assert store.write_sync(write) == "written"
    assert store.write_sync(write) == "written"


def test_closing_commits_what_waits_and_then_nothing_is_taken(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "hdet.db")
    futures = [store._writer.submit(add(f"{n:03}")) for n in range(100)]
    store.close()
    store.close()
    assert all(future.exception() is None for future in futures)
    assert len(seen_from_outside(store)) == 100
    with pytest.raises(StoreClosedError, match=r"open it again with Store\.open"):
        store.write_sync(add("late"))
    with pytest.raises(StoreClosedError):
        store.read_sync(lambda session: None)
    with pytest.raises(StoreClosedError):
        asyncio.run(store.read(lambda session: None))


def test_a_job_and_what_points_to_it_may_be_added_in_one_write(store: Store) -> None:
    def write(session: Session) -> None:
        session.add_all([make_job(id="a"), JobLabel(job_id="a", key="k", value="v")])
        session.add(Counter(job_id="a", name="n", value=1.0))

    store.write_sync(write)
    assert store.read_sync(lambda session: (count(session, JobLabel), count(session, Counter))) == (1, 1)


def test_no_value_is_null_and_not_a_json_null(store: Store) -> None:
    store.write_sync(lambda session: session.add(make_job(id="a", plan=None, schedule={})))
    query = select(Job.id).where(Job.plan.is_(None), Job.schedule.is_not(None))
    assert store.read_sync(lambda session: session.scalar(query)) == "a"


def test_a_value_that_json_has_no_word_for_is_refused_as_a_write_of_its_own(store: Store) -> None:
    nan = make_job(id="nan", plan={"loss": float("nan")})
    failed, other = in_one_group(store, lambda session: session.add(nan), add("a"))
    assert "not JSON compliant" in str(failed.exception())
    assert other.exception() is None


def test_ids_grow_where_the_clock_steps_back(tmp_path: Path) -> None:
    now = [2_000.0]
    with Store.open(tmp_path / "hdet.db", clock=lambda: now[0]) as store:
        ids = [store.new_id(), store.new_id()]
        now[0] = 1_000.0
        ids += [store.new_id() for _ in range(100)]
        store.write_sync(add(ids[-1]))
    with Store.open(tmp_path / "hdet.db", clock=lambda: now[0]) as store:
        ids.append(store.new_id())
        now[0] = 3_000.0
        ids.append(store.new_id())
    assert ids == sorted(set(ids))
    assert {len(id) for id in ids} == {26}


_WRITES_UNTIL_KILLED = """
import sys
from hdet_service.store.database import Store
from tests.service.store_rows import make_job
store = Store.open(sys.argv[1])
for n in range(1_000_000):
    store.write_sync(lambda session: session.add(make_job(id=f"{n:07}")))
    print(n, flush=True)
"""


@pytest.mark.parametrize("num_acknowledged", [1, 40])
def test_what_was_acknowledged_outlives_a_kill(tmp_path: Path, num_acknowledged: int) -> None:
    child = start_child(_WRITES_UNTIL_KILLED, tmp_path / "hdet.db")
    for _ in range(num_acknowledged):
        read_line(child)
    child.send_signal(signal.SIGKILL)
    acknowledged = num_acknowledged + len((child.communicate(timeout=10)[0]).splitlines())
    with Store.open(tmp_path / "hdet.db") as store:
        ids = store.read_sync(lambda session: session.scalars(select(Job.id).order_by(Job.id)).all())
        assert store.read_sync(lambda session: session.scalar(text("PRAGMA integrity_check"))) == "ok"
    assert ids[:acknowledged] == [f"{n:07}" for n in range(acknowledged)]
    assert len(ids) <= acknowledged + 1
