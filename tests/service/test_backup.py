"""A backup taken under load is consistent, comes back whole, and never lands where it would do harm."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import sqlite3
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from hdet_service.store.backup import EPOCH_MARGIN, backup, restore
from hdet_service.store.database import Store
from hdet_service.store.errors import BackupError, StoreError, StoreLockedError, StoreNewerError
from hdet_service.store.models import Audit, ControllerRow, Counter, Job, Package, Transition
from hdet_service.store.schema import head
from tests.service.store_rows import count, make_job, read_line, start_child

NEEDED, ENDED = (hashlib.sha256(content).hexdigest() for content in (b"needed", b"ended"))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with a database, kept logs, and packages of a job that waits and of one that has ended."""
    folder = tmp_path / "home"
    (folder / "packages").mkdir(parents=True)
    (folder / "logs" / "a").mkdir(parents=True)
    (folder / "logs" / "a" / "1.log").write_text("first line\nsecond line\n")
    (folder / "token").write_text("secret")
    for content in (b"needed", b"ended"):
        (folder / "packages" / f"{hashlib.sha256(content).hexdigest()}.zip").write_bytes(content)
    with Store.open(folder / "hdet.sqlite3") as store:
        store.write_sync(fill)
    return folder


def fill(session: Session) -> None:
    session.add(ControllerRow(id=1, epoch=7, pid=1, started_s=0.0))
    session.add(make_job(id="a", spec={"runtime_env": {"working_dir": NEEDED}}))
    session.add(make_job(id="b", spec={"runtime_env": {"working_dir": ENDED}}, state="SUCCEEDED"))
    session.add(Counter(job_id="a", name="steps", value=0))
    for sha256 in (NEEDED, ENDED):
        session.add(Package(sha256=sha256, size_bytes=6, created_by="ann", created_s=0.0, used_s=0.0))


def step(session: Session) -> None:
    """One write over two tables: there are always as many transitions as the counter says."""
    session.get_one(Counter, ("a", "steps")).value += 1
    session.add(Transition(job_id="a", state="RUNNING", reason="Running", at_s=0.0))


def steps_of(store: Store) -> tuple[int, int]:
    return store.read_sync(
        lambda session: (
            int(session.scalar(select(Counter.value).where(Counter.job_id == "a")) or 0),
            session.scalar(select(func.count()).select_from(Transition)) or 0,
        )
    )


@pytest.fixture
def under_load(home: Path) -> Iterator[Store]:
    """A store that writes all the time, in two threads."""
    is_over = threading.Event()
    with Store.open(home / "hdet.sqlite3") as store:
        store.write_sync(step)

        def go_on() -> None:
            while not is_over.is_set():
                store.write_sync(step)

        threads = [threading.Thread(target=go_on) for _ in range(2)]
        for thread in threads:
            thread.start()
        yield store
        is_over.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("source_of", [lambda store: store, lambda store: store.path], ids=["store", "path"])
def test_a_backup_under_load_restores_to_a_consistent_state(
    under_load: Store, tmp_path: Path, source_of: Callable[[Store], Store | Path]
) -> None:
    for attempt in range(3):
        before = steps_of(under_load)[0]
        backup(source_of(under_load), tmp_path / f"{attempt}.tar.gz")
        after = steps_of(under_load)[0]
        place = tmp_path / f"new{attempt}" / "hdet.sqlite3"
        restore(tmp_path / f"{attempt}.tar.gz", place)
        with Store.open(place) as restored:
            counted, transitions = steps_of(restored)
            assert restored.read_sync(lambda session: session.scalar(text("PRAGMA integrity_check"))) == "ok"
        assert counted == transitions
        assert before <= counted <= after
    assert steps_of(under_load)[0] > before, "the load went on meanwhile"


def test_what_comes_back_is_all_that_a_controller_needs(home: Path, tmp_path: Path) -> None:
    told = backup(home / "hdet.sqlite3", tmp_path / "b.tar.gz", clock=lambda: 1234.0)
    assert (told.num_jobs, told.num_logs, told.num_packages, told.schema) == (2, 1, 1, head())
    told = restore(tmp_path / "b.tar.gz", tmp_path / "new" / "hdet.sqlite3")
    assert (told.num_jobs, told.num_logs, told.num_packages, told.created_s) == (2, 1, 1, 1234.0)
    assert (told.path, told.replaced) == (tmp_path / "new" / "hdet.sqlite3", None)
    assert (tmp_path / "new" / "logs" / "a" / "1.log").read_text() == "first line\nsecond line\n"
    assert (tmp_path / "new" / "packages" / f"{NEEDED}.zip").read_bytes() == b"needed"
    with Store.open(tmp_path / "new" / "hdet.sqlite3") as store:
        assert store.read_sync(lambda session: count(session, Job)) == 2


def test_packages_of_jobs_that_have_ended_stay_away_with_their_rows(home: Path, tmp_path: Path) -> None:
    backup(home / "hdet.sqlite3", tmp_path / "b.tar.gz")
    restore(tmp_path / "b.tar.gz", tmp_path / "new" / "hdet.sqlite3")
    assert [file.name for file in (tmp_path / "new" / "packages").iterdir()] == [f"{NEEDED}.zip"]
    with Store.open(tmp_path / "new" / "hdet.sqlite3") as store:
        assert store.read_sync(lambda session: session.scalars(select(Package.sha256)).all()) == [NEEDED]
    with Store.open(home / "hdet.sqlite3") as store:
        assert store.read_sync(lambda session: count(session, Package)) == 2


def test_no_token_lies_in_the_archive_and_it_is_for_its_owner_alone(home: Path, tmp_path: Path) -> None:
    backup(home / "hdet.sqlite3", tmp_path / "b.tar.gz")
    assert (tmp_path / "b.tar.gz").stat().st_mode & 0o777 == 0o600
    with tarfile.open(tmp_path / "b.tar.gz") as archive:
        assert archive.getnames() == [
            "manifest.json",
            "database.sqlite3",
            "logs/a/1.log",
            f"packages/{NEEDED}.zip",
        ]


def test_a_restored_controller_counts_on_above_every_epoch_that_a_worker_may_have_seen(
    home: Path, tmp_path: Path
) -> None:
    backup(home / "hdet.sqlite3", tmp_path / "b.tar.gz")
    with Store.open(home / "hdet.sqlite3") as store:
        store.write_sync(lambda session: setattr(session.get_one(ControllerRow, 1), "epoch", 40))
    restore(tmp_path / "b.tar.gz", home / "hdet.sqlite3", force=True, clock=lambda: 99.0)
    with Store.open(home / "hdet.sqlite3") as store:
        assert store.read_sync(lambda session: session.get_one(ControllerRow, 1)).epoch == 40 + EPOCH_MARGIN
        notes = store.read_sync(lambda session: session.scalars(select(Audit)).all())
    assert [(note.action, note.at_s) for note in notes] == [("restore", 99.0)]


def test_a_restore_over_a_live_controller_is_refused_even_by_force(home: Path, tmp_path: Path) -> None:
    backup(home / "hdet.sqlite3", tmp_path / "b.tar.gz")
    with Store.open(home / "hdet.sqlite3") as store:
        for force in (False, True):
            with pytest.raises(StoreLockedError, match="belongs to a running controller"):
                restore(tmp_path / "b.tar.gz", home / "hdet.sqlite3", force=force)
        assert store.read_sync(lambda session: count(session, Job)) == 2


def test_a_restore_over_a_database_needs_force_and_moves_the_old_one_aside_with_its_log(
    home: Path, tmp_path: Path
) -> None:
    path = home / "hdet.sqlite3"
    backup(path, tmp_path / "b.tar.gz")
    # Killed with a commit in its write-ahead log only.
    child = start_child(_WRITES_INTO_THE_LOG, path)
    assert read_line(child) == "written"
    child.kill()
    child.communicate(timeout=10)
    before = path.read_bytes()
    with pytest.raises(BackupError, match="exists already; use force"):
        restore(tmp_path / "b.tar.gz", path)
    assert path.read_bytes() == before
    told = restore(tmp_path / "b.tar.gz", path, force=True)
    with Store.open(path) as store:
        assert store.read_sync(lambda session: count(session, Job)) == 2
    assert told.replaced == home / "hdet.sqlite3.replaced"
    with closing(sqlite3.connect(told.replaced)) as old:
        assert old.execute("SELECT count(*) FROM jobs").fetchone() == (3,)


_WRITES_INTO_THE_LOG = """
import sys
from hdet_service.store.database import Store
from tests.service.store_rows import make_job
store = Store.open(sys.argv[1])
store.write_sync(lambda session: session.add(make_job(id="late")))
print("written", flush=True)
sys.stdin.read()
"""


def test_a_log_that_an_interrupted_restore_left_alone_does_not_meet_the_new_database(
    home: Path, tmp_path: Path
) -> None:
    backup(home / "hdet.sqlite3", tmp_path / "b.tar.gz")
    new = tmp_path / "new"
    new.mkdir()
    (new / "hdet.sqlite3-wal").write_bytes(b"of another database")
    restore(tmp_path / "b.tar.gz", new / "hdet.sqlite3")
    assert (new / "hdet.sqlite3.replaced-wal").read_bytes() == b"of another database"
    assert not (new / "hdet.sqlite3-wal").exists()


def test_a_damaged_database_can_be_replaced(home: Path, tmp_path: Path) -> None:
    backup(home / "hdet.sqlite3", tmp_path / "b.tar.gz")
    (home / "hdet.sqlite3").write_bytes(b"ruined" * 1000)
    restore(tmp_path / "b.tar.gz", home / "hdet.sqlite3", force=True)
    with Store.open(home / "hdet.sqlite3") as store:
        assert store.read_sync(lambda session: count(session, Job)) == 2


def test_a_backup_of_nothing_or_over_something_is_refused(home: Path, tmp_path: Path) -> None:
    with pytest.raises(BackupError, match="does not exist: there is nothing to back up"):
        backup(tmp_path / "nowhere.sqlite3", tmp_path / "b.tar.gz")
    (tmp_path / "b.tar.gz").write_text("precious")
    with pytest.raises(BackupError, match="exists already; choose another name"):
        backup(home / "hdet.sqlite3", tmp_path / "b.tar.gz")
    assert (tmp_path / "b.tar.gz").read_text() == "precious"


def test_a_damaged_database_is_not_backed_up_as_if_it_were_whole(home: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(home / "hdet.sqlite3")) as connection, connection:
        connection.execute("PRAGMA foreign_keys=OFF")
        connection.execute("INSERT INTO job_labels VALUES ('nobody', 'k', 'v')")
    with pytest.raises(BackupError, match=r"is damaged .* 1 rows point nowhere"):
        backup(home / "hdet.sqlite3", tmp_path / "b.tar.gz")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["home"], "nothing is left behind"


_DISK_IS_FULL = """
import os, resource, sys
from pathlib import Path
from hdet_service.store.backup import backup, restore
from hdet_service.store.errors import StoreError
database, archive, what = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
if what == "restore":
    backup(database, archive)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
try:
    backup(database, archive) if what == "backup" else restore(archive, database, force=True)
except StoreError as error:
    print(type(error).__name__, flush=True)
"""


@pytest.mark.parametrize("what", ["backup", "restore"])
def test_a_disk_that_fills_up_leaves_everything_as_it_was(home: Path, tmp_path: Path, what: str) -> None:
    path = home / "hdet.sqlite3"
    before = path.read_bytes()
    child = start_child(_DISK_IS_FULL, path, tmp_path / "b.tar.gz", what)
    assert read_line(child) in ("StoreFullError", "StoreIOError")
    child.communicate(timeout=10)
    assert path.read_bytes() == before
    left = {file.name for file in (*tmp_path.iterdir(), *home.iterdir())}
    made = {"b.tar.gz"} if what == "restore" else set()
    assert left == {"home", "hdet.sqlite3", "hdet.sqlite3.lock", "logs", "packages", "token"} | made


# ---- archives that must not be believed


def members_of(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {m.name: archive.extractfile(m).read() for m in archive.getmembers()}  # type: ignore[union-attr]


def pack(path: Path, members: dict[str, bytes], *odd: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for member in odd:
            archive.addfile(member)
    return path


@pytest.fixture
def members(home: Path, tmp_path: Path) -> dict[str, bytes]:
    """What a good archive holds."""
    backup(home / "hdet.sqlite3", tmp_path / "good.tar.gz")
    return members_of(tmp_path / "good.tar.gz")


def refuse(archive: Path, message: str, kind: type[StoreError] = BackupError) -> None:
    """The archive is refused, and nothing but the lock file is left of the attempt."""
    place = archive.parent / "place"
    with pytest.raises(kind, match=message):
        restore(archive, place / "hdet.sqlite3")
    assert [file.name for file in place.rglob("*")] == ["hdet.sqlite3.lock"]


@pytest.mark.parametrize(
    "name",
    [
        "../climbed",
        "logs/../../climbed",
        "/tmp/climbed",
        "logs/./x",
        "logs//x",
        "logs",
        "packages/x.zip",
        "packages/a/b.zip",
        "token",
        "hdet.sqlite3.lock",
    ],
)
def test_a_member_that_climbs_or_is_not_ours_is_refused(
    members: dict[str, bytes], tmp_path: Path, name: str
) -> None:
    archive = pack(tmp_path / "bad.tar.gz", {**members, name: b"x"})
    refuse(archive, "is nothing that a backup holds")
    assert not (tmp_path / "climbed").exists()


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE]
)
def test_links_devices_and_folders_are_refused(
    members: dict[str, bytes], tmp_path: Path, kind: bytes
) -> None:
    odd = tarfile.TarInfo("logs/a/odd")
    odd.type, odd.linkname = kind, "/etc/passwd"
    refuse(pack(tmp_path / "bad.tar.gz", members, odd), "is nothing that a backup holds")


def test_a_member_that_stands_twice_is_refused(members: dict[str, bytes], tmp_path: Path) -> None:
    twice = tarfile.TarInfo("logs/a/1.log")
    refuse(pack(tmp_path / "bad.tar.gz", members, twice), "stands twice")


def changed(members: dict[str, bytes], **values: Any) -> dict[str, bytes]:
    manifest = {**json.loads(members["manifest.json"]), **values}
    return {**members, "manifest.json": json.dumps(manifest).encode()}


def test_an_archive_of_a_newer_format_or_schema_is_refused_by_version(
    members: dict[str, bytes], tmp_path: Path
) -> None:
    newer = pack(tmp_path / "format.tar.gz", changed(members, format=9, release="8.0"))
    refuse(newer, r"format 9, made by release 8\.0; this release reads up to format 1")
    newer = pack(tmp_path / "schema.tar.gz", changed(members, schema="0999"))
    refuse(newer, f"has schema 0999; this release knows schemas up to {head()}", StoreNewerError)


@pytest.mark.parametrize("name", ["database.sqlite3", f"packages/{NEEDED}.zip"])
def test_a_content_that_was_exchanged_is_refused(
    members: dict[str, bytes], tmp_path: Path, name: str
) -> None:
    archive = pack(tmp_path / "bad.tar.gz", {**members, name: members[name] + b"x"})
    refuse(archive, "is not what was backed up")


def test_an_archive_without_a_database_is_refused(members: dict[str, bytes], tmp_path: Path) -> None:
    del members["database.sqlite3"]
    refuse(pack(tmp_path / "bad.tar.gz", members), "holds no database")


@pytest.mark.parametrize("manifest", [b"", b"[]", b"{}", b'{"format": "x"}', b"\xff"])
def test_a_damaged_manifest_is_refused(members: dict[str, bytes], tmp_path: Path, manifest: bytes) -> None:
    refuse(pack(tmp_path / "bad.tar.gz", {**members, "manifest.json": manifest}), "damaged manifest")


def test_a_file_that_is_no_backup_is_refused(tmp_path: Path) -> None:
    (tmp_path / "letter.tar.gz").write_text("a letter " * 100)
    refuse(tmp_path / "letter.tar.gz", "can't be read to its end")
    refuse(pack(tmp_path / "other.tar.gz", {"readme": b"x"}), "is no backup: its first member")
    refuse(pack(tmp_path / "empty.tar.gz", {}), "is no backup")
    with pytest.raises(BackupError, match="does not exist; name an archive"):
        restore(tmp_path / "nowhere.tar.gz", tmp_path / "place" / "hdet.sqlite3")


def test_an_archive_that_was_cut_is_refused_wherever_it_was_cut(home: Path, tmp_path: Path) -> None:
    backup(home / "hdet.sqlite3", tmp_path / "good.tar.gz")
    whole = (tmp_path / "good.tar.gz").read_bytes()
    for length in (0, 1, 20, len(whole) // 4, len(whole) // 2, len(whole) - 200, len(whole) - 1):
        (tmp_path / "cut.tar.gz").write_bytes(whole[:length])
        refuse(tmp_path / "cut.tar.gz", "can't be read to its end|damaged manifest|is no backup")


def test_a_flipped_bit_is_refused_wherever_it_is(members: dict[str, bytes], tmp_path: Path) -> None:
    raw = gzip.decompress((tmp_path / "good.tar.gz").read_bytes())
    spoiled = raw.replace(b"second line", b"second lime")
    whole = bytearray((tmp_path / "good.tar.gz").read_bytes())
    # The old checksum stands behind the new content: what a bad disk makes of it.
    packed = bytearray(gzip.compress(spoiled))
    packed[-8:] = whole[-8:]
    (tmp_path / "bad.tar.gz").write_bytes(packed)
    refuse(tmp_path / "bad.tar.gz", "can't be read to its end")
