"""Downloads pinned wheels with pip, without installing them, and refuses any other content."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from deploy.tools.errors import ToolsError
from deploy.tools.pins import Wheel


def download(wheel: Wheel, folder: Path) -> Path:
    """Fetch ``wheel`` into ``folder`` and return its file.

    Raises:
        ToolsError: pip could not find it, or what it brought has another digest than the pin.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pinned = f"{wheel.name}=={wheel.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(folder), pinned]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ToolsError(f"pip could not download {pinned}; is the package index reachable?\n{done.stderr}")
    return verified(_file_of(wheel, folder), wheel)


def verified(file: Path, wheel: Wheel) -> Path:
    """The file, if its content is the pinned one.

    Raises:
        ToolsError: it is not; the file is deleted.
    """
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if digest != wheel.sha256:
        file.unlink()
        raise ToolsError(
            f"{file.name} has SHA-256 {digest}, not the pinned {wheel.sha256}; "
            f"do not use it: find out why it changed before you change the pin"
        )
    return file


def _file_of(wheel: Wheel, folder: Path) -> Path:
    stem = wheel.name.replace("-", "_")
    found = sorted(folder.glob(f"{stem}-{wheel.version}-*.whl"))
    if len(found) != 1:
        raise ToolsError(f"expected one wheel of {wheel.name} {wheel.version} in {folder}, found {found}")
    return found[0]
