"""Pins: the checkpoint that a rollback goes back to is kept where the run doesn't prune it.

Until its driver has stopped a run goes on saving, and with each checkpoint Ray deletes its oldest: the very
one that an operator has just asked for, perhaps. A pin holds the same files beside them. Where the storage is
a folder it costs nothing, since it links them; elsewhere it is a copy.
"""

from __future__ import annotations

import logging
import os
import posixpath
import shutil

import pyarrow.fs as pafs

from hdet_ray.exceptions import CheckpointError
from hdet_ray.train.layout import HDET_FOLDER, PINNED_FOLDER
from hdet_ray.train.manifest import MANIFEST_FILE
from hdet_ray.train.storage import resolve, verify_at
from hdet_service.problems import Conflict

logger = logging.getLogger(__name__)


def pin_name(round: int, attempt: int) -> str:
    """A pin's folder: of a round's checkpoints each attempt has its own."""
    return f"round-{round}-attempt-{attempt}"


def pin(storage_path: str, folder: str, name: str) -> bool:
    """Keep a checkpoint.

    Args:
        storage_path: Folder of the run, a path or a URI.
        folder: Name of the checkpoint's folder in it.
        name: Of the pin.

    Returns:
        Whether it is new.

    Raises:
        Conflict: the run has deleted it meanwhile.
    """
    filesystem, root = resolve(storage_path)
    source, target = posixpath.join(root, folder), posixpath.join(root, PINNED_FOLDER, name)
    if _is_complete(filesystem, target):
        return False
    try:
        _keep_files(filesystem, source, target)
    except OSError as error:
        unpin(storage_path, name)
        raise Conflict(
            f"the run has deleted its checkpoint {folder} just now ({error}); go back to a newer round, "
            "or keep more of them with checkpoint.keep"
        ) from error
    if not _is_complete(filesystem, target):
        unpin(storage_path, name)
        raise Conflict(f"the run was deleting its checkpoint {folder} just now; go back to a newer round")
    return True


def unpin(storage_path: str, name: str) -> None:
    """Let go of a pin; one that isn't there is no error."""
    filesystem, root = resolve(storage_path)
    try:
        filesystem.delete_dir(posixpath.join(root, PINNED_FOLDER, name))
    except OSError as error:
        logger.info("pin not deleted: path=%s name=%s cause=%s", storage_path, name, error)


def unpin_others(storage_path: str, name: str) -> None:
    """Let go of all pins of a run but one."""
    filesystem, root = resolve(storage_path)
    pins = pafs.FileSelector(posixpath.join(root, PINNED_FOLDER), allow_not_found=True)
    for info in filesystem.get_file_info(pins):
        if info.base_name != name:
            unpin(storage_path, info.base_name)


def _is_complete(filesystem: pafs.FileSystem, path: str) -> bool:
    try:
        verify_at(filesystem, posixpath.join(path, HDET_FOLDER))
    except (CheckpointError, OSError):
        return False
    return True


def _keep_files(filesystem: pafs.FileSystem, source: str, target: str) -> None:
    """All files of a checkpoint, the user's too; the manifest last, so that a half is never taken for one."""
    files = [
        info.path
        for info in filesystem.get_file_info(pafs.FileSelector(source, recursive=True))
        if info.type == pafs.FileType.File
    ]
    for path in sorted(files, key=lambda path: posixpath.basename(path) == MANIFEST_FILE):
        place = posixpath.join(target, posixpath.relpath(path, source))
        filesystem.create_dir(posixpath.dirname(place), recursive=True)
        if filesystem.type_name == "local":
            _link(path, place)
        else:
            filesystem.copy_file(path, place)


def _link(path: str, place: str) -> None:
    try:
        os.link(path, place)
    except FileNotFoundError:
        raise
    except FileExistsError:
        return
    except OSError:  # a file system without links
        shutil.copyfile(path, place)
