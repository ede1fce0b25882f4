"""The tools are what the pins say, taken out of wheels without running anything of them."""

from __future__ import annotations

import io
import re
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from deploy.tools import fetch
from deploy.tools.archives import extract
from deploy.tools.errors import ToolsError
from deploy.tools.pins import DEBIAN_PACKAGES, WHEELS, Member, Wheel
from deploy.tools.wheels import verified
from tests.deploy.rendering import BIN, ROOT, quiet_environment


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A wheel with a zip in a tar in it, and a folder."""
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as layer:
        layer.writestr("tool/tool", b"program")
    middle = io.BytesIO()
    with tarfile.open(fileobj=middle, mode="w:gz") as tar:
        entry = tarfile.TarInfo("package/layer.zip")
        entry.size = len(inner.getvalue())
        tar.addfile(entry, io.BytesIO(inner.getvalue()))
    file = tmp_path / "some_tool-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as outer:
        outer.writestr("some_tool/_assets/tool@1.0.tgz", middle.getvalue())
        outer.writestr("some_tool/schemas/a.json", b"{}")
        outer.writestr("some_tool/schemas/b.json", b"[]")
        outer.writestr("some_tool/other/c.json", b"{}")
    return file


def test_a_program_is_found_in_an_archive_in_an_archive(wheel: Path, tmp_path: Path) -> None:
    extract(wheel, Member(path="*.tgz!package/layer.zip!tool/tool", target="bin/tool"), tmp_path)
    assert (tmp_path / "bin/tool").read_bytes() == b"program"
    assert (tmp_path / "bin/tool").stat().st_mode & 0o111


def test_a_folder_is_taken_whole_and_alone(wheel: Path, tmp_path: Path) -> None:
    extract(wheel, Member(path="some_tool/schemas/", target="schemas"), tmp_path)
    assert sorted(path.name for path in (tmp_path / "schemas").iterdir()) == ["a.json", "b.json"]


@pytest.mark.parametrize("path", ["*.json", "nothing", "*.tgz!package/none", "*/a.json!tool"])
def test_what_is_not_exactly_there_is_named(wheel: Path, tmp_path: Path, path: str) -> None:
    with pytest.raises(ToolsError, match=r"correct the pin|neither zip nor tar"):
        extract(wheel, Member(path=path, target="bin/tool"), tmp_path)
    assert not (tmp_path / "bin").exists()


def test_another_content_than_the_pinned_is_refused_and_deleted(wheel: Path) -> None:
    pin = Wheel(name="some-tool", version="1.0", sha256="0" * 64, members=())
    with pytest.raises(ToolsError, match=r"not the pinned 0000"):
        verified(wheel, pin)
    assert not wheel.exists()


def test_every_wheel_is_pinned_by_its_digest() -> None:
    assert all(re.fullmatch("[0-9a-f]{64}", pin.sha256) for pin in WHEELS)


@pytest.mark.deploy
def test_a_second_run_fetches_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert fetch.main() == 0
    assert capsys.readouterr().out == ""


@pytest.mark.deploy
@pytest.mark.parametrize(
    ("command", "version"),
    [
        (["helm", "version", "--short"], r"^v4\."),
        (["kubectl", "version", "--client"], r"Client Version: v1\.36"),
        (["hadolint", "--version"], r"2\.15\.1"),
        (["promtool", "--version"], r"promtool, version [2-9]\."),
        (["prometheus", "--version"], r"prometheus, version [2-9]\."),
        (["amtool", "--version"], r"amtool, version 0\."),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_every_tool_runs(command: list[str], version: str) -> None:
    done = subprocess.run(
        [str(BIN / command[0]), *command[1:]],
        capture_output=True,
        text=True,
        check=False,
        env=quiet_environment(),
    )
    assert re.search(version, done.stdout + done.stderr)


def test_the_programs_of_the_pins_are_those_that_the_checks_run() -> None:
    from_wheels = [member.target for pin in WHEELS for member in pin.members]
    from_debian = [f"bin/{name}" for package in DEBIAN_PACKAGES for _, name in package.programs]
    programs = {Path(target).name for target in [*from_wheels, *from_debian] if target.startswith("bin/")}
    assert programs == {"helm", "kubectl", "hadolint", "prometheus", "promtool", "amtool"}


@pytest.mark.deploy
def test_the_dockerfile_has_nothing_that_hadolint_remarks() -> None:
    command = [str(BIN / "hadolint"), "--no-color", "deploy/Dockerfile"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
