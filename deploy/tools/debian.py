"""Downloads Debian packages with apt and unpacks them, without root and without installing anything.

The machine's own package lists are used where it has fresh ones; else lists are fetched into the tools'
folder, which needs no rights over the system's.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from deploy.tools.errors import ToolsError
from deploy.tools.pins import DebianPackage


def unpack(package: DebianPackage, folder: Path) -> None:
    """Put the wanted programs of ``package`` into ``folder``/bin.

    Raises:
        ToolsError: no apt on this machine, or the package cannot be downloaded or lacks a program.
    """
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise ToolsError(
            f"{package.name} comes as a Debian package and this machine has no apt-get and dpkg; run this on "
            f"Debian or Ubuntu (a container of it will do)"
        )
    work = folder / "downloads" / package.name
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    if not _download(package.name, work, options=[]):
        _download_with_own_lists(package.name, work, folder / "downloads" / "apt")
    [archive] = work.glob("*.deb")
    _run(["dpkg", "-x", str(archive), str(work / "root")], work)
    (folder / "bin").mkdir(exist_ok=True)
    for inside, name in package.programs:
        program = work / "root" / inside
        if not program.is_file():
            raise ToolsError(f"{archive.name} has no {inside}; correct the pin's programs")
        shutil.copy2(program, folder / "bin" / name)
    shutil.rmtree(work / "root")


def _download(name: str, work: Path, options: list[str]) -> bool:
    return _run(["apt-get", "download", *options, name], work).returncode == 0 and any(work.glob("*.deb"))


def _download_with_own_lists(name: str, work: Path, state: Path) -> None:
    for part in ("lists/partial", "cache/archives/partial"):
        (state / part).mkdir(parents=True, exist_ok=True)
    options = ["-o", f"Dir::State::Lists={state / 'lists'}", "-o", f"Dir::Cache={state / 'cache'}"]
    # A source that does not answer is no reason to give up: the package may come from another.
    updated = _run(["apt-get", "update", *options], work)
    if not _download(name, work, options):
        raise ToolsError(
            f"apt-get could not download {name}; is a Debian mirror set up and reachable?\n{updated.stderr}"
        )


def _run(command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
