"""A database of the first schema, with data, becomes one of today: nothing lost, a copy kept."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, select

from hdet_ray.core.replay import read_ledger, replay
from hdet_service.store.database import Store
from hdet_service.store.errors import StoreBusyError, StoreDamagedError
from hdet_service.store.models import Base, Counter, Event, Job, LedgerStart, Round
from hdet_service.store.schema import head, migrate, version_of
from tests.service.store_rows import make_job

FIRST_SCHEMA = Path(__file__).with_name("first_schema.sql").read_text(encoding="utf-8")
JOB = "01JC0000000000000000000001"
BUSY_TIMEOUT_S = 5.0


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """A database as the first release left it."""
    path = tmp_path / "hdet.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(FIRST_SCHEMA)
        connection.execute("PRAGMA journal_mode=WAL")
    return path


def rows_of(path: Path) -> dict[str, list[dict[str, Any]]]:
    """All tables' rows, by column."""
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        tables = schema_of(path, "table")
        return {
            name: [dict(row) for row in connection.execute(f'SELECT * FROM "{name}" ORDER BY rowid')]
            for name in tables
        }


def schema_of(path: Path, kind: str) -> dict[str, str]:
    """Tables or indexes, by name, without the white space of their SQL."""
    with closing(sqlite3.connect(path)) as connection:
        query = "SELECT name, sql FROM sqlite_master WHERE type = ? AND sql IS NOT NULL"
        return {name: "".join(sql.split()) for name, sql in connection.execute(query, (kind,))}


def test_the_first_migration_still_makes_what_the_first_release_made(first: Path, tmp_path: Path) -> None:
    migrate(tmp_path / "new.db", BUSY_TIMEOUT_S, "0001")
    for kind in ("table", "index"):
        assert schema_of(tmp_path / "new.db", kind) == schema_of(first, kind)


def test_every_row_of_the_first_schema_is_found_after_the_migration(first: Path) -> None:
    before = rows_of(first)
    assert {name for name, rows in before.items() if not rows} == set(), (
        "each table of the first schema has data"
    )
    Store.open(first).close()
    after = rows_of(first)
    assert after.pop("alembic_version") == [{"version_num": head()}]
    for name in before.keys() - {"alembic_version"}:
        kept = [{column: row[column] for column in before[name][0]} for row in after[name]]
        assert kept == before[name], name


def test_the_models_read_what_was_migrated_and_its_ledger_replays(first: Path) -> None:
    with Store.open(first) as store:
        job = store.read_sync(lambda session: session.get_one(Job, JOB))
        rounds = store.read_sync(
            lambda session: session.scalars(
                select(Round).where(Round.job_id == JOB, ~Round.is_abandoned).order_by(Round.round)
            ).all()
        )
        start = store.read_sync(lambda session: session.get_one(LedgerStart, JOB))
    assert (job.name, job.owner, job.state, job.round, job.revision) == ("digits", "ann", "RUNNING", 4, 2)
    assert [(row.attempt, row.round, row.is_thinned) for row in rounds] == [(1, k, False) for k in range(4)]
    outcome = replay(read_ledger([json.dumps(start.header), *(row.item for row in rounds)]))
    assert (outcome.rounds, outcome.departure) == (4, None)


def test_what_is_new_works_on_old_jobs(first: Path) -> None:
    with Store.open(first) as store:
        store.write_sync(
            lambda session: session.add(Counter(job_id=JOB, name="hdet_rollbacks_total", value=2))
        )
        store.write_sync(lambda session: session.delete(session.get_one(Job, JOB)))
        assert store.read_sync(lambda session: session.scalars(select(Counter)).all()) == []
        assert store.read_sync(lambda session: session.scalars(select(Round)).all()) == []


def test_an_event_id_of_before_the_migration_is_never_given_again(first: Path) -> None:
    # The dump's newest event, 2, was deleted before.
    event = Event(job_id=JOB, type="state", data={}, at_s=1.0)
    with Store.open(first) as store:
        store.write_sync(lambda session: session.add(event))
        assert event.id == 3


def test_the_models_are_what_the_migrations_make(first: Path, tmp_path: Path) -> None:
    Store.open(tmp_path / "new.db").close()
    Store.open(first).close()
    for path in (first, tmp_path / "new.db"):
        engine = create_engine(f"sqlite:///{path}")
        with engine.connect() as connection:
            assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
        engine.dispose()
    for kind in ("table", "index"):
        assert schema_of(first, kind) == schema_of(tmp_path / "new.db", kind)


def test_the_copy_made_before_is_the_database_as_it_was(first: Path) -> None:
    before = rows_of(first)
    Store.open(first).close()
    copy = first.with_name("hdet.db.schema-0001")
    assert rows_of(copy) == before
    assert version_of(copy) == "0001"
    assert copy.stat().st_mode & 0o077 == 0


def test_an_older_copy_is_not_written_over(first: Path) -> None:
    first.with_name("hdet.db.schema-0001").write_text("precious")
    Store.open(first).close()
    assert first.with_name("hdet.db.schema-0001").read_text() == "precious"
    assert version_of(first.with_name("hdet.db.schema-0001.1")) == "0001"


def test_a_database_of_today_is_neither_migrated_nor_copied(tmp_path: Path) -> None:
    Store.open(tmp_path / "hdet.db").close()
    Store.open(tmp_path / "hdet.db").close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hdet.db", "hdet.db.lock"]


def test_a_migration_that_fails_half_way_changes_nothing_and_can_be_tried_again(first: Path) -> None:
    with closing(sqlite3.connect(first)) as connection, connection:
        # Stands in the way of the last statements of 0002.
        connection.execute("CREATE INDEX jobs_by_owner ON jobs (owner)")
    before, indexes = rows_of(first), schema_of(first, "index")
    with pytest.raises(StoreDamagedError, match=r"jobs_by_owner already exists.*nothing was changed"):
        Store.open(first)
    assert rows_of(first) == before
    assert schema_of(first, "index") == indexes
    with closing(sqlite3.connect(first)) as connection, connection:
        connection.execute("DROP INDEX jobs_by_owner")
    Store.open(first).close()
    assert version_of(first) == head()


def test_rows_that_point_nowhere_stop_the_migration(first: Path) -> None:
    with closing(sqlite3.connect(first)) as connection, connection:
        connection.execute("INSERT INTO job_labels VALUES ('nobody', 'k', 'v')")
    before = rows_of(first)
    with pytest.raises(
        StoreDamagedError, match=r"1 rows .* would point nowhere .*'job_labels'.* nothing was"
    ):
        Store.open(first)
    assert rows_of(first) == before


def test_a_migration_under_another_programs_lock_is_refused_by_name(first: Path) -> None:
    with closing(sqlite3.connect(first, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreBusyError):
            Store.open(first, busy_timeout_s=0.1)
    assert version_of(first) == "0001"


def test_a_failed_opening_gives_the_lock_back(first: Path) -> None:
    with closing(sqlite3.connect(first, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreBusyError):
            Store.open(first, busy_timeout_s=0.1)
    Store.open(first).close()


def test_a_new_database_is_made_by_all_migrations_in_order(tmp_path: Path) -> None:
    migrate(tmp_path / "hdet.db", BUSY_TIMEOUT_S, "0001")
    assert version_of(tmp_path / "hdet.db") == "0001"
    with Store.open(tmp_path / "hdet.db") as store:
        store.write_sync(lambda session: session.add(make_job()))
    assert version_of(tmp_path / "hdet.db") == head()


_OPENS = "import sys; from hdet_service.store.database import Store; Store.open(sys.argv[1]).close()"


def test_the_migrations_run_from_a_packed_copy_in_another_folder(first: Path, tmp_path: Path) -> None:
    """As installed: the packages' own files alone, in a folder without an alembic.ini."""
    root = Path(__file__).parents[2]
    site = tmp_path / "site"
    for package in (root / "hdet_ray", root / "service" / "hdet_service"):
        for file in package.rglob("*.py"):
            target = site / package.name / file.relative_to(package)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    (tmp_path / "elsewhere").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", "import hdet_service; print(hdet_service.__file__); " + _OPENS, str(first)],
        cwd=tmp_path / "elsewhere",
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(str(site))
    assert version_of(first) == head()
