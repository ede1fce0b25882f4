"""A folder as one zip that is the same for the same files: names sorted, times fixed, modes reduced.

The same content then has the same SHA-256, so a folder that did not change is stored once.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from pathspec import GitIgnoreSpec

from hdet_service.client._errors import PackageError

IGNORE_FILES = (".gitignore", ".hdetignore")
"""Patterns in these, in the folder or below, leave files out."""

ALWAYS_OUT = (
    ".git/",
    ".hg/",
    ".svn/",
    ".venv/",
    "venv/",
    "node_modules/",
    "__pycache__/",
    "*.pyc",
    ".mypy_cache/",
    ".pytest_cache/",
    ".ruff_cache/",
    ".DS_Store",
)

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the oldest time that a zip can hold
_CHUNK_BYTES = 1 << 20
_MAX_FILES = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedFolder:
    """A zip in a temporary file, open at its start."""

    file: IO[bytes]
    sha256: str
    size_bytes: int
    names: tuple[str, ...]

    def chunks(self) -> Iterator[bytes]:
        """The bytes, from the start."""
        self.file.seek(0)
        while chunk := self.file.read(_CHUNK_BYTES):
            yield chunk


@contextmanager
def packed(folder: Path, exclude: Sequence[str] = ()) -> Iterator[PackedFolder]:
    """A folder's zip, for as long as the context lasts.

    Args:
        folder: The working directory.
        exclude: Patterns as in ``.gitignore``, on top of the folder's own.

    Raises:
        PackageError: no such folder, nothing in it, or a link that leads outside.
    """
    files = files_of(folder, exclude)
    with tempfile.TemporaryFile() as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
            for name, path in files.items():
                _add(archive, name, path)
        size_bytes = file.tell()
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        yield PackedFolder(file=file, sha256=digest, size_bytes=size_bytes, names=tuple(files))


def describe_package(folder: Path, exclude: Sequence[str] = ()) -> dict[str, Any]:
    """What `HDETClient.upload_package` would send: ``sha256``, ``size_bytes``, ``files`` (count), ``names``.

    Raises:
        PackageError: the folder can't be packed.
    """
    with packed(folder, exclude) as package:
        return {
            "sha256": package.sha256,
            "size_bytes": package.size_bytes,
            "files": len(package.names),
            "names": list(package.names),
        }


def files_of(folder: Path, exclude: Sequence[str] = ()) -> dict[str, Path]:
    """What a package of the folder holds: name in the zip to file, sorted.

    Raises:
        PackageError: as `packed`.
    """
    root = folder.expanduser()
    if not root.is_dir():
        raise PackageError(f"{folder} is no folder; give the one that holds your modules")
    root = root.resolve()
    files = dict(sorted(_walk(root, exclude)))
    if not files:
        raise PackageError(f"{folder} holds no file to pack, or its ignore files leave out all of them")
    if len(files) > _MAX_FILES:
        raise PackageError(
            f"{folder} holds {len(files)} files, more than {_MAX_FILES}; leave data and outputs out with a "
            "line in .hdetignore"
        )
    return files


def _walk(root: Path, exclude: Sequence[str]) -> Iterator[tuple[str, Path]]:
    specs = {PurePosixPath(): GitIgnoreSpec.from_lines([*ALWAYS_OUT, *exclude])}
    own: dict[PurePosixPath, GitIgnoreSpec] = {}
    for where, folders, names in os.walk(root):
        here = PurePosixPath(Path(where).relative_to(root).as_posix())
        patterns = [line for name in IGNORE_FILES if name in names for line in _lines(Path(where) / name)]
        if patterns:
            own[here] = GitIgnoreSpec.from_lines(patterns)

        def is_out(relative: PurePosixPath, suffix: str = "") -> bool:
            return specs[PurePosixPath()].match_file(f"{relative}{suffix}") or any(
                spec.match_file(f"{relative.relative_to(above)}{suffix}")
                for above, spec in own.items()
                if relative.is_relative_to(above)
            )

        folders[:] = sorted(name for name in folders if not is_out(here / name, "/"))
        for name in folders:
            _refuse_linked_folder(root, Path(where) / name)
        for name in names:
            path = Path(where) / name
            if not is_out(here / name) and _is_inside(root, path):
                yield (here / name).as_posix(), path


def _is_inside(root: Path, path: Path) -> bool:
    """Whether it is a file to pack; sockets, pipes and devices are not.

    Raises:
        PackageError: a link that leads outside, or to nothing.
    """
    if path.is_symlink():
        target = path.resolve()
        if not target.is_relative_to(root):
            raise PackageError(
                f"{path} links to {target}, outside {root}; copy it in, or leave it out by a line in "
                ".hdetignore"
            )
        if not target.exists():
            raise PackageError(f"{path} links to {target}, which is not there; mend or remove the link")
    return path.is_file()


def _refuse_linked_folder(root: Path, path: Path) -> None:
    if path.is_symlink():
        raise PackageError(
            f"{path} links to a folder ({path.resolve()}), which is not followed; copy it in, or leave it "
            f"out by a line in {root / '.hdetignore'}"
        )


def _add(archive: zipfile.ZipFile, name: str, path: Path) -> None:
    mode = 0o755 if os.stat(path).st_mode & stat.S_IXUSR else 0o644
    info = zipfile.ZipInfo(name, date_time=_EPOCH)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = (stat.S_IFREG | mode) << 16
    with path.open("rb") as source, archive.open(info, "w", force_zip64=True) as target:
        while chunk := source.read(_CHUNK_BYTES):
            target.write(chunk)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PackageError(f"{path} can't be read ({error}); it holds one pattern a line") from error
