"""Where checkpoints lie: a local folder, object storage, or any pyarrow file system.

An upload puts the manifest last, and a checkpoint is taken only when all of it agrees with its
manifest: so an upload that died half-way, or two that crossed, is never taken for a checkpoint.
"""

from __future__ import annotations

import logging
import os
import posixpath
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.fs as pafs

from hdet_ray.exceptions import CheckpointError, ConfigError
from hdet_ray.train.manifest import MANIFEST_FILE, Manifest, NewerVersionError, OpenFile, verify

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 8 << 20


def resolve(
    place: str | os.PathLike[str], filesystem: pafs.FileSystem | None = None
) -> tuple[pafs.FileSystem, str]:
    """File system and path of a local path or a URI.

    Raises:
        ConfigError: pyarrow knows no file system for it.
    """
    text = os.fspath(place)
    if filesystem is not None:
        return filesystem, text
    if "://" not in text:
        return pafs.LocalFileSystem(), os.path.abspath(text)
    try:
        resolved: tuple[pafs.FileSystem, str] = pafs.FileSystem.from_uri(text)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ConfigError(
            f"storage {text!r} can't be resolved ({error}); use a local path, an s3://, gs:// or hdfs:// "
            "URI, or pass a pyarrow file system and a path on it"
        ) from error
    return resolved


def upload(local_dir: str | os.PathLike[str], filesystem: pafs.FileSystem, path: str) -> None:
    """Copy a finished local checkpoint to ``path``, its manifest last. What lay there is replaced.

    Raises:
        CheckpointError: ``local_dir`` has no manifest.
    """
    source = Path(local_dir)
    if not (source / MANIFEST_FILE).is_file():
        raise CheckpointError(
            f"{source} holds no {MANIFEST_FILE}: only a finished checkpoint is uploaded; save it first"
        )
    # Without its manifest the old checkpoint is unfinished: no moment shows a mixture as complete.
    if _exists(filesystem, posixpath.join(path, MANIFEST_FILE)):
        filesystem.delete_file(posixpath.join(path, MANIFEST_FILE))
    filesystem.create_dir(path, recursive=True)
    names = sorted(
        entry.name for entry in source.iterdir() if entry.is_file() and entry.name != MANIFEST_FILE
    )
    for name in [*names, MANIFEST_FILE]:
        with (
            (source / name).open("rb") as reader,
            filesystem.open_output_stream(posixpath.join(path, name)) as writer,
        ):
            shutil.copyfileobj(reader, writer, _CHUNK_BYTES)


def newest_complete(filesystem: pafs.FileSystem, paths: Iterable[str]) -> str | None:
    """The first path that holds a complete checkpoint; each one passed over is warned about.

    Args:
        filesystem: Where they lie.
        paths: Candidates, newest first.

    Raises:
        NewerVersionError: A newer version of the library wrote one: an older one of its checkpoints
            would silently throw away what it did since.
    """
    for path in paths:
        try:
            verify_at(filesystem, path)
        except NewerVersionError:
            raise
        except CheckpointError as error:
            logger.warning("checkpoint passed over: %s", error)
        else:
            return path
    return None


def verify_at(filesystem: pafs.FileSystem, path: str) -> Manifest:
    """Compare all of a stored checkpoint with its manifest.

    Raises:
        CheckpointError: It is not complete, or a newer version wrote it.
    """
    return verify(opener(filesystem, path), path)


def opener(filesystem: pafs.FileSystem, path: str) -> OpenFile:
    """Opens files of a stored checkpoint, for `hdet_ray.train.manifest`."""

    def open_file(name: str) -> Any:
        full = posixpath.join(path, name)
        if not _exists(filesystem, full):  # not every file system raises FileNotFoundError
            raise FileNotFoundError(full)
        return filesystem.open_input_stream(full)

    return open_file


def _exists(filesystem: pafs.FileSystem, path: str) -> bool:
    return bool(filesystem.get_file_info(path).type != pafs.FileType.NotFound)
