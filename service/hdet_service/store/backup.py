"""Backups: one file out, taken while the controller works, and back in where none does.

The database is copied by SQLite's own online backup in a single step: one consistent picture,
however many writes go on. Kept logs come with it, and the packages of jobs that may still start.
Checkpoints don't: they lie in the runs' own storage.
"""

from __future__ import annotations

import gzip
import io
import os
import sqlite3
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from hdet_ray import __version__
from hdet_service.states import TERMINAL
from hdet_service.store.archive import (
    DATABASE_NAME,
    FORMAT,
    LOGS_FOLDER,
    MANIFEST_NAME,
    PACKAGES_FOLDER,
    BackupManifest,
    checked_name,
    extract,
    package_of,
    read_manifest,
    sha256_of,
)
from hdet_service.store.database import Store, database_path
from hdet_service.store.errors import BackupError, StoreError, translated
from hdet_service.store.lock import DatabaseLock
from hdet_service.store.schema import check_known, free_name, version_of

EPOCH_MARGIN = 1000
"""Added to the epoch of a restored database: workers refuse a controller whose epoch is older than one that
they have seen, and the backup doesn't know how often its controller started since."""

_COMPRESSION = 4  # of 9: a third of the time of the usual 9, a tenth more bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupSummary:
    """What a backup holds, or what was restored from it."""

    path: Path
    """The archive, or the restored database."""
    schema: str
    created_s: float
    """When the backup was taken; seconds since the epoch, UTC."""
    num_jobs: int
    num_logs: int
    num_packages: int
    replaced: Path | None = None
    """Where the database lies that stood there before."""


def backup(
    source: Store | str | Path, target: str | Path, *, clock: Callable[[], float] = time.time
) -> BackupSummary:
    """Write a backup of a database and of the logs and packages beside it.

    Args:
        source: An open store, or the URL or path of a database, in use or not.
        target: The archive to write (``.tar.gz``), readable by its owner alone.
        clock: Seconds since the epoch, UTC.

    Raises:
        BackupError: There is no database, it is damaged, or the target exists.
        StoreNewerError: A newer release wrote the database.
        StoreFullError: No space left; nothing is left behind.
    """
    path = source.path if isinstance(source, Store) else database_path(source)
    target = Path(target).absolute()
    if not path.is_file():
        raise BackupError(f"{path} does not exist: there is nothing to back up; check HDET_HOME")
    if target.exists():
        raise BackupError(f"{target} exists already; choose another name, or remove it first")
    with _told(target), tempfile.TemporaryDirectory(dir=target.parent, prefix=".hdet-backup-") as scratch:
        copy = Path(scratch) / DATABASE_NAME
        _copy_database(path, copy)
        packages = _keep_needed_packages(copy, path.parent / PACKAGES_FOLDER)
        _check_integrity(copy, path)
        logs = sorted(file for file in (path.parent / LOGS_FOLDER).rglob("*") if _is_plain(file))
        manifest = BackupManifest(
            format=FORMAT,
            release=__version__,
            schema=version_of(copy) or "",
            created_s=clock(),
            database_bytes=copy.stat().st_size,
            database_sha256=sha256_of(copy),
        )
        draft = Path(scratch) / "draft.tar.gz"
        _write_archive(draft, manifest, copy, path.parent, [*logs, *packages])
        draft.replace(target)
        _sync_folder(target.parent)
        return BackupSummary(
            path=target,
            schema=manifest.schema,
            created_s=manifest.created_s,
            num_jobs=_num_jobs(copy),
            num_logs=len(logs),
            num_packages=len(packages),
        )


def restore(
    source: str | Path,
    target: str | Path,
    *,
    force: bool = False,
    clock: Callable[[], float] = time.time,
) -> BackupSummary:
    """Put a backup's database, logs and packages where a controller will look for them.

    Args:
        source: An archive of `backup`.
        target: URL or path of the database to make; logs and packages go beside it.
        force: Also where a database stands there: that one is moved aside, never deleted.
        clock: Seconds since the epoch, UTC.

    Raises:
        BackupError: No backup, a damaged or a forged one, or a database is there already.
        StoreLockedError: A controller is running on it.
        StoreNewerError: A newer release made the backup.
        StoreFullError: No space left; what was there is as it was.
    """
    source, path = Path(source), database_path(target)
    if not source.is_file():
        raise BackupError(f"{source} does not exist; name an archive that `hdet backup` wrote")
    with _told(path):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _locked(path), tempfile.TemporaryDirectory(dir=path.parent, prefix=".hdet-restore-") as scratch:
            if path.exists() and not force:
                raise BackupError(
                    f"{path} exists already; use force (`--force`) to move it aside and restore in its place"
                )
            manifest, names = _unpack(source, Path(scratch))
            copy = Path(scratch) / DATABASE_NAME
            _check_integrity(copy, source)
            _mark_restored(copy, path, manifest, clock())
            summary = BackupSummary(
                path=path,
                schema=manifest.schema,
                created_s=manifest.created_s,
                num_jobs=_num_jobs(copy),
                num_logs=sum(name.startswith(f"{LOGS_FOLDER}/") for name in names),
                num_packages=sum(name.startswith(f"{PACKAGES_FOLDER}/") for name in names),
                replaced=_move_in(Path(scratch), names, path),
            )
            _sync_folder(path.parent)
            return summary


# ---- taking


def _copy_database(path: Path, copy: Path) -> None:
    check_known(version_of(path), path)
    copy.touch(mode=0o600)
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(copy)) as target:
        source.execute("PRAGMA query_only=ON")
        source.backup(target, pages=-1)  # all in one step: it never has to begin anew under writes
        target.execute("PRAGMA journal_mode=DELETE")  # one file, nothing beside it


def _keep_needed_packages(copy: Path, folder: Path) -> list[Path]:
    """Files of the packages that a job which hasn't ended may start from; rows of all others are left out."""
    with closing(sqlite3.connect(copy)) as connection, connection:
        ended = ", ".join(f"'{state}'" for state in sorted(TERMINAL))
        specs = [
            spec for (spec,) in connection.execute(f"SELECT spec FROM jobs WHERE state NOT IN ({ended})")
        ]
        known = [sha256 for (sha256,) in connection.execute("SELECT sha256 FROM packages")]
        files = {
            sha256: folder / f"{sha256}.zip" for sha256 in known if any(sha256 in spec for spec in specs)
        }
        kept = {sha256: file for sha256, file in files.items() if file.is_file()}
        gone = [(sha256,) for sha256 in known if sha256 not in kept]
        connection.executemany("DELETE FROM packages WHERE sha256 = ?", gone)
    return sorted(kept.values())


def _write_archive(draft: Path, manifest: BackupManifest, copy: Path, home: Path, files: list[Path]) -> None:
    draft.touch(mode=0o600)
    with draft.open("wb") as raw:
        with tarfile.open(
            fileobj=raw,
            mode="w:gz",
            compresslevel=_COMPRESSION,
            dereference=True,  # a log with two names: twice
        ) as archive:
            text = manifest.to_json()
            head = tarfile.TarInfo(MANIFEST_NAME)
            head.size, head.mtime, head.mode = len(text), int(manifest.created_s), 0o600
            archive.addfile(head, io.BytesIO(text))
            _add(archive, copy, DATABASE_NAME)
            for file in files:
                _add(archive, file, file.relative_to(home).as_posix())
        raw.flush()
        os.fsync(raw.fileno())


def _add(archive: tarfile.TarFile, file: Path, name: str) -> None:
    """Add a file as long as it is now: a log may grow meanwhile."""
    with file.open("rb") as content:
        member = archive.gettarinfo(arcname=name, fileobj=content)
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        archive.addfile(member, content)


# ---- giving back


def _unpack(source: Path, scratch: Path) -> tuple[BackupManifest, list[str]]:
    """Check and extract all members; the names of logs and packages come back."""
    names: set[str] = set()
    try:
        with gzip.open(source) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            manifest = read_manifest(archive.next(), archive, source)
            check_known(manifest.schema, source)
            while (member := archive.next()) is not None:
                name = str(checked_name(member))
                if name in names:
                    raise BackupError(f"member {name!r} stands twice in {source}; nothing was restored")
                names.add(name)
                found = extract(archive, member, scratch / name)
                if found != _promised(name, manifest, found):
                    raise BackupError(
                        f"member {name!r} of {source} is not what was backed up; use another backup"
                    )
            # tarfile takes a cut for the end; gzip's checksum stands behind it.
            while stream.read(1 << 20):
                pass
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BackupError(f"{source} can't be read to its end ({error}); use another backup") from error
    if DATABASE_NAME not in names:
        raise BackupError(f"{source} holds no database; use another backup")
    return manifest, sorted(names - {DATABASE_NAME})


def _promised(name: str, manifest: BackupManifest, found: str) -> str:
    """The hash that a member must have; that of a log was never promised, gzip's checksum guards it."""
    if name == DATABASE_NAME:
        return manifest.database_sha256
    return package_of(Path(name).name) or found if name.startswith(f"{PACKAGES_FOLDER}/") else found


def _mark_restored(copy: Path, replaced: Path, manifest: BackupManifest, now_s: float) -> None:
    """Raise the epoch above those that workers may have seen, and leave a note of the restore."""
    seen = 0
    if replaced.exists():
        try:
            with closing(sqlite3.connect(replaced)) as old:
                seen = old.execute("SELECT max(epoch) FROM controller").fetchone()[0] or 0
        except sqlite3.Error:
            seen = 0  # damaged: that is why it is being replaced
    with closing(sqlite3.connect(copy)) as connection, connection:
        connection.execute("UPDATE controller SET epoch = max(epoch, ?) + ?", (seen, EPOCH_MARGIN))
        connection.execute(
            "INSERT INTO audit (actor, action, reason, at_s) VALUES ('restore', 'restore', ?, ?)",
            (f"from a backup of release {manifest.release}", now_s),
        )


def _move_in(scratch: Path, names: list[str], path: Path) -> Path | None:
    """Logs and packages first, the database last: only then is there something to start from."""
    for name in names:
        place = path.parent / name
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        (scratch / name).replace(place)
    aside = free_name(path.with_name(f"{path.name}.replaced"))
    replaced = aside if path.exists() else None
    # The log of the old database goes with it, also where an interrupted restore has left it alone here:
    # beside the new one it would ruin it.
    for end in ("", "-wal", "-shm"):
        if (old := path.with_name(path.name + end)).exists():
            old.replace(aside.with_name(aside.name + end))
    with (scratch / DATABASE_NAME).open("rb") as file:
        os.fsync(file.fileno())
    (scratch / DATABASE_NAME).replace(path)
    return replaced


# ---- both


def _check_integrity(copy: Path, named: Path) -> None:
    with closing(sqlite3.connect(copy)) as connection:
        findings = [row[0] for row in connection.execute("PRAGMA integrity_check(3)")]
        orphans = connection.execute("PRAGMA foreign_key_check").fetchall()
    if findings != ["ok"] or orphans:
        raise BackupError(
            f"the database of {named} is damaged ({findings}, {len(orphans)} rows point nowhere)"
        )


def _num_jobs(copy: Path) -> int:
    with closing(sqlite3.connect(copy)) as connection:
        return int(connection.execute("SELECT count(*) FROM jobs").fetchone()[0])


def _is_plain(file: Path) -> bool:
    return file.is_file() and not file.is_symlink()


def _sync_folder(folder: Path) -> None:
    """Make a rename in it last."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = DatabaseLock(path)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn what SQLite and the system say into the store's errors."""
    try:
        yield
    except StoreError:
        raise
    except (sqlite3.Error, OSError) as error:
        raise translated(error, path) from error
