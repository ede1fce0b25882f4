"""The schema's versions: Alembic's migrations, packaged, and run in one transaction each time.

A database that is to be changed is copied first, beside itself; where a migration fails, the
transaction takes all of it back.
"""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from hdet_service.store.errors import StoreDamagedError, StoreNewerError, StorePlaceError, translated

logger = logging.getLogger(__name__)

_VERSION_TABLE = "alembic_version"


def head() -> str:
    """The schema's version that this release works with."""
    found = _scripts().get_current_head()
    if found is None:
        raise StoreDamagedError("this installation has no migrations; install hdet-ray[service] again")
    return found


def migrate(path: Path, busy_timeout_s: float, target: str = "head") -> None:
    """Bring a database to ``target``, a new one from nothing.

    Raises:
        StoreNewerError: A newer version wrote it.
        StorePlaceError: It is another program's database.
        StoreDamagedError: The data don't fit the new schema; the database stays as it was.
    """
    wanted = head() if target == "head" else target
    current = version_of(path, busy_timeout_s)
    check_known(current, path)
    if current == wanted:
        return
    if current is not None:
        copy = copy_aside(path, f"schema-{current}")
        logger.info("migrating %s from schema %s to %s; a copy is kept at %s", path, current, wanted, copy)
    try:
        _upgrade(path, busy_timeout_s, wanted)
    except DBAPIError as error:
        told = translated(error, path)
        if told is not error:
            raise told from error
        raise StoreDamagedError(
            f"the migration of {path} from schema {current} to {wanted} failed ({error.orig}); nothing was "
            "changed: report this, and go on with the release that wrote the database meanwhile"
        ) from error


def _upgrade(path: Path, busy_timeout_s: float, wanted: str) -> None:
    """All steps in one transaction."""
    # Foreign keys stay off here: a table that is made anew would delete the rows that point to it.
    engine = create_engine(f"sqlite:///{path}", poolclass=NullPool, connect_args={"timeout": busy_timeout_s})

    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    with engine.begin() as connection:
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, wanted)
        broken = connection.execute(text("PRAGMA foreign_key_check")).fetchall()
        if broken:
            raise StoreDamagedError(
                f"after the migration {len(broken)} rows of {path} would point nowhere (first: {broken[0]}); "
                "nothing was changed: report this, with the copy beside the database"
            )


def version_of(path: Path, busy_timeout_s: float = 5.0) -> str | None:
    """The version of a database's schema; None where the database is empty.

    Raises:
        StorePlaceError: It holds another program's tables.
    """
    with closing(sqlite3.connect(path, timeout=busy_timeout_s)) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")}
        tables = {name for name in tables if not name.startswith("sqlite_")}
        if not tables:
            return None
        if _VERSION_TABLE not in tables:
            raise StorePlaceError(
                f"{path} holds tables of another program ({', '.join(sorted(tables)[:3])}); choose "
                "another file"
            )
        row = connection.execute(f"SELECT version_num FROM {_VERSION_TABLE}").fetchone()
    return None if row is None else str(row[0])


def check_known(version: str | None, path: Path) -> None:
    """Refuse what a newer release wrote.

    Raises:
        StoreNewerError: This release does not know the version.
    """
    known = [script.revision for script in _scripts().walk_revisions()]
    if version is not None and version not in known:
        raise StoreNewerError(
            f"{path} has schema {version}; this release knows schemas up to {head()}: install the release "
            "that wrote it or a newer one, or restore the copy that its migration made"
        )


def copy_aside(path: Path, label: str) -> Path:
    """Copy a database beside itself under a name that is free.

    Returns:
        The copy, as ``<name>.<label>`` or ``<name>.<label>.<number>``.
    """
    copy = free_name(path.with_name(f"{path.name}.{label}"))
    copy.touch(mode=0o600)
    try:
        with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(copy)) as target:
            source.backup(target)
    except sqlite3.Error:
        copy.unlink()
        raise
    return copy


def free_name(path: Path) -> Path:
    """``path``, or the first of ``path.1``, ``path.2``, … that isn't taken."""
    found, number = path, 0
    while found.exists():
        number += 1
        found = path.with_name(f"{path.name}.{number}")
    return found


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", "hdet_service.store:migrations")
    config.set_main_option("path_separator", "os")
    return config


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())
