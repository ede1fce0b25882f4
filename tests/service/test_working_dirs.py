"""A package with wheels becomes one working directory, without pip and without the network."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from hdet_service.starter import LaunchRefusedError
from hdet_service.working_dirs import is_packaged_wheel, prepared_working_dir

WHEEL = "dep-1.0-py3-none-any.whl"


def make_zip(path: Path, files: dict[str, bytes]) -> bytes:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path.read_bytes()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    wheel = make_zip(
        tmp_path / WHEEL,
        {
            "dep/__init__.py": b"VALUE = 1",
            "shared.py": b"theirs",
            "dep-1.0.dist-info/METADATA": b"Name: dep",
            "dep-1.0.data/purelib/extra.py": b"EXTRA = 1",
            "dep-1.0.data/scripts/tool": b"#!python",
        },
    )
    path = tmp_path / f"{'a' * 64}.zip"
    make_zip(path, {"mine.py": b"import dep", "shared.py": b"mine", f"wheels/{WHEEL}": wheel})
    return path


def contents(path: Path | str | None) -> dict[str, bytes]:
    assert isinstance(path, Path)
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_a_wheels_modules_lie_beside_the_packages_own(package: Path, tmp_path: Path) -> None:
    with prepared_working_dir(package, [f"./wheels/{WHEEL}"], tmp_path / "scratch") as prepared:
        files = contents(prepared)
    assert files["dep/__init__.py"] == b"VALUE = 1"
    assert files["extra.py"] == b"EXTRA = 1"
    assert files["mine.py"] == b"import dep"
    assert files["shared.py"] == b"mine"
    assert "dep-1.0.dist-info/METADATA" in files
    assert not any("scripts" in name for name in files)


def test_the_same_package_gives_the_same_bytes_and_leaves_nothing_behind(
    package: Path, tmp_path: Path
) -> None:
    made = []
    for _ in range(2):
        with prepared_working_dir(package, [f"wheels/{WHEEL}"], tmp_path / "scratch") as prepared:
            assert isinstance(prepared, Path)
            made.append(prepared.read_bytes())
    assert made[0] == made[1]
    assert list((tmp_path / "scratch").iterdir()) == []


def test_without_wheels_the_package_itself_is_used(package: Path, tmp_path: Path) -> None:
    with prepared_working_dir(package, [], tmp_path) as prepared:
        assert prepared == package
    with prepared_working_dir(None, [], tmp_path) as prepared:
        assert prepared is None


def test_a_wheel_that_is_not_in_the_package_is_named(package: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(LaunchRefusedError, match=r"other\.whl.*not in the package"),
        prepared_working_dir(package, ["other.whl"], tmp_path),
    ):
        pass


def test_a_package_that_is_gone_is_said_so(tmp_path: Path) -> None:
    for wheels in ([], [WHEEL]):
        with (
            pytest.raises(LaunchRefusedError, match="upload it again"),
            prepared_working_dir(tmp_path / "gone.zip", wheels, tmp_path),
        ):
            pass


def test_a_wheel_whose_entries_climb_out_is_refused(tmp_path: Path) -> None:
    wheel = make_zip(tmp_path / WHEEL, {"../evil.py": b""})
    package = tmp_path / "package.zip"
    make_zip(package, {WHEEL: wheel})
    with (
        pytest.raises(LaunchRefusedError, match="climbs out"),
        prepared_working_dir(package, [WHEEL], tmp_path),
    ):
        pass


@pytest.mark.parametrize("damage", ["encrypted", "unknown compression", "cut stream"])
def test_a_package_that_can_not_be_read_is_refused(tmp_path: Path, damage: str) -> None:
    package = tmp_path / f"{'c' * 64}.zip"
    with zipfile.ZipFile(package, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("mine.py", b"import dep\n" * 100)
        archive.writestr(WHEEL, b"")
    raw = bytearray(package.read_bytes())
    for signature, flags, method in ((b"PK\x03\x04", 6, 8), (b"PK\x01\x02", 8, 10)):
        entry = raw.index(signature)
        if damage == "encrypted":
            raw[entry + flags] |= 1
        elif damage == "unknown compression":
            raw[entry + method] = 97
    if damage == "cut stream":
        start = raw.index(b"mine.py") + len(b"mine.py")
        raw[start : start + 4] = b"\xff\xff\xff\xff"
    package.write_bytes(raw)
    with (
        pytest.raises(LaunchRefusedError, match="no zip that can be read"),
        prepared_working_dir(package, [WHEEL], tmp_path / "scratch"),
    ):
        pass


@pytest.mark.parametrize(
    ("requirement", "is_one"),
    [
        ("./dep-1.0-py3-none-any.whl", True),
        ("wheels/dep.whl", True),
        ("dep==1.0", False),
        ("/opt/dep.whl", False),
        ("https://example.org/dep.whl", False),
    ],
)
def test_a_wheel_of_the_package_is_a_relative_path(requirement: str, is_one: bool) -> None:
    assert is_packaged_wheel(requirement) is is_one
