"""Ray's index of a run's checkpoints, kept twice.

Ray writes it anew in its own place with each checkpoint. A driver that is killed at that moment leaves half
of it behind, and then Ray starts no driver for that run any more, whatever checkpoints lie there. So a copy
is written whenever the index is whole, and taken where it is not.
"""

from __future__ import annotations

import json
import logging
import posixpath
from typing import Any

import pyarrow.fs as pafs
from ray.train import RunConfig
from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME as INDEX_FILE
from ray.train.v2._internal.execution.callback import ControllerCallback, ReportCallback

from hdet_ray.exceptions import CheckpointError
from hdet_ray.train.layout import INDEX_COPY_FILE
from hdet_ray.train.storage import resolve

logger = logging.getLogger(__name__)


class IndexCopy(ReportCallback, ControllerCallback):
    """Lives in Ray's controller, which calls it when its index is written."""

    def __init__(self) -> None:
        self._place: tuple[pafs.FileSystem, str] | None = None

    def after_controller_start(self, train_run_context: Any) -> None:
        self._place = _place_of(train_run_context.run_config)

    def after_report(self, training_report: Any, metrics: list[dict[str, Any]]) -> None:
        if training_report.checkpoint is None or self._place is None:
            return
        filesystem, folder = self._place
        content = _read_whole(filesystem, posixpath.join(folder, INDEX_FILE))
        if content is not None:
            _write(filesystem, posixpath.join(folder, INDEX_COPY_FILE), content)


def restore_index(config: RunConfig) -> None:
    """Put the copy in the place of an index that was cut short; call it before Ray reads it.

    Args:
        config: Of the run that begins.

    Raises:
        CheckpointError: There is an index, but neither it nor its copy can be read.
    """
    filesystem, folder = _place_of(config)
    index = posixpath.join(folder, INDEX_FILE)
    is_there = filesystem.get_file_info(index).type == pafs.FileType.File
    if not is_there or _read_whole(filesystem, index) is not None:
        return
    copy = _read_whole(filesystem, posixpath.join(folder, INDEX_COPY_FILE))
    if copy is None:
        raise CheckpointError(
            f"Ray's index of the run's checkpoints, {index}, was cut short, and there is no copy beside it; "
            "start under a new RunConfig(name=…), with the weights of the newest checkpoint (hdet export)"
        )
    logger.warning("the index of checkpoints was cut short, its copy is taken: path=%s", index)
    _write(filesystem, index, copy)


def _place_of(config: Any) -> tuple[pafs.FileSystem, str]:
    filesystem, path = resolve(config.storage_path, config.storage_filesystem)
    return filesystem, posixpath.join(path, config.name)


def _read_whole(filesystem: pafs.FileSystem, path: str) -> bytes | None:
    """What a file of JSON holds, or None where it is missing or cut short."""
    if filesystem.get_file_info(path).type != pafs.FileType.File:
        return None
    with filesystem.open_input_stream(path) as reader:
        content: bytes = reader.read()
    try:
        json.loads(content)
    except ValueError:
        return None
    return content


def _write(filesystem: pafs.FileSystem, path: str, content: bytes) -> None:
    with filesystem.open_output_stream(path) as writer:
        writer.write(content)
