"""Plain weights out of a checkpoint: a file that ``safetensors.torch.load_file`` reads without us."""

from __future__ import annotations

import os
import posixpath
import shutil
import tempfile
from pathlib import Path

import pyarrow.fs as pafs

from hdet_ray.exceptions import CheckpointError
from hdet_ray.train.checkpoints import WEIGHTS_FILE
from hdet_ray.train.layout import HDET_FOLDER
from hdet_ray.train.manifest import MANIFEST_FILE
from hdet_ray.train.storage import opener, resolve, verify_at


def export_weights(
    checkpoint: str | os.PathLike[str],
    output: str | os.PathLike[str],
    filesystem: pafs.FileSystem | None = None,
) -> Path:
    """Copy the weights of a verified checkpoint to a file of their own.

    Args:
        checkpoint: A checkpoint's folder as Ray keeps it, or the ``hdet`` folder inside: a path or a URI.
        output: The weights file to write (``model.safetensors``); its folder is made where missing.
        filesystem: A pyarrow file system that ``checkpoint`` is a path on.

    Returns:
        The path of the written file. It appears whole or not at all.

    Raises:
        CheckpointError: No such checkpoint, or it is unfinished, damaged, or of a newer version.
    """
    fs, path = resolve(checkpoint, filesystem)
    path = _folder_with_manifest(fs, path)
    verify_at(fs, path)
    target = Path(output)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as scratch:
        unfinished = Path(scratch) / WEIGHTS_FILE
        with opener(fs, path)(WEIGHTS_FILE) as reader, unfinished.open("wb") as writer:
            shutil.copyfileobj(reader, writer)
        unfinished.replace(target)
    return target


def _folder_with_manifest(fs: pafs.FileSystem, path: str) -> str:
    inside = posixpath.join(path, HDET_FOLDER)
    for folder in (path, inside):
        if fs.get_file_info(posixpath.join(folder, MANIFEST_FILE)).type == pafs.FileType.File:
            return folder
    raise CheckpointError(
        f"neither {path} nor {inside} holds a {MANIFEST_FILE}; name the folder of a finished checkpoint "
        "(checkpoint_… in the run's folder)"
    )
