"""Folders as packages: the same files give the same zip, and nothing from outside gets in."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from hdet_service.client import PackageError
from hdet_service.client._packages import files_of, packed


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "work"
    for name in (
        "train.py",
        "lib/data.py",
        "lib/__pycache__/data.pyc",
        ".git/HEAD",
        "out/model.bin",
        "notes.log",
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return root


def digest_of(folder: Path) -> str:
    with packed(folder) as package:
        return package.sha256


def test_the_same_files_give_the_same_digest_whatever_their_times(folder: Path) -> None:
    before = digest_of(folder)
    os.utime(folder / "train.py", (1, 1))
    (folder / "train.py").chmod(0o600)
    assert digest_of(folder) == before


def test_a_changed_file_changes_the_digest(folder: Path) -> None:
    before = digest_of(folder)
    (folder / "train.py").write_text("other")
    assert digest_of(folder) != before


def test_the_digest_is_that_of_the_bytes_that_are_sent_each_time(folder: Path) -> None:
    import hashlib

    with packed(folder) as package:
        for _ in range(2):
            data = b"".join(package.chunks())
            assert hashlib.sha256(data).hexdigest() == package.sha256
            assert len(data) == package.size_bytes


def test_caches_and_version_control_stay_out(folder: Path) -> None:
    assert set(files_of(folder)) == {"train.py", "lib/data.py", "out/model.bin", "notes.log"}


def test_ignore_files_count_where_they_lie(folder: Path) -> None:
    (folder / ".gitignore").write_text("out/\n")
    (folder / ".hdetignore").write_text("*.log\n!notes.log\n")
    (folder / "lib" / ".gitignore").write_text("/data.py\n")
    (folder / "data.py").write_text("another one")
    assert set(files_of(folder)) == {
        ".gitignore",
        ".hdetignore",
        "lib/.gitignore",
        "data.py",
        "notes.log",
        "train.py",
    }


def test_patterns_can_be_given_beside(folder: Path) -> None:
    assert set(files_of(folder, ["out/", "*.log"])) == {"train.py", "lib/data.py"}


def test_a_program_stays_one(folder: Path) -> None:
    (folder / "train.py").chmod(0o755)
    with packed(folder) as package:
        modes = {i.filename: i.external_attr >> 16 & 0o777 for i in zipfile.ZipFile(package.file).infolist()}
    assert modes["train.py"] == 0o755
    assert modes["lib/data.py"] == 0o644


def test_a_link_that_leads_outside_is_refused_by_name(folder: Path) -> None:
    (folder / "secret").symlink_to("/etc/passwd")
    with pytest.raises(PackageError, match=r"secret links to /etc/passwd, outside"):
        files_of(folder)


def test_a_link_that_leads_outside_may_be_ignored(folder: Path) -> None:
    (folder / "secret").symlink_to("/etc/passwd")
    assert "secret" not in files_of(folder, ["secret"])


def test_a_link_to_a_file_inside_is_packed_as_that_file(folder: Path) -> None:
    (folder / "again.py").symlink_to("train.py")
    with packed(folder) as package:
        assert zipfile.ZipFile(package.file).read("again.py") == b"train.py"


def test_a_linked_folder_is_refused(folder: Path) -> None:
    (folder / "loop").symlink_to(folder)
    with pytest.raises(PackageError, match="loop links to a folder"):
        files_of(folder)


def test_a_pipe_is_left_out(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    assert "pipe" not in files_of(folder)


@pytest.mark.parametrize("name", ["absent", "empty"])
def test_nothing_to_pack_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(PackageError, match=name):
        files_of(tmp_path / name)
