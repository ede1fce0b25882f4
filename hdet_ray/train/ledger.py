"""The ledger of a run: one file beside its checkpoints.

The control appends a line a round, so the file is written locally. Where the run's storage is not a
local folder, a copy goes up with each checkpoint and comes down when the run resumes.
"""

from __future__ import annotations

import posixpath
import shutil
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from hdet_ray.train.layout import LEDGER_FILE


class RunLedger:
    """Where rank 0 keeps the ledger of a run.

    Args:
        storage: Ray's storage of the run (``ray.train.get_context().get_storage()``).
    """

    def __init__(self, storage: Any) -> None:
        self._filesystem: pafs.FileSystem = storage.storage_filesystem
        self._stored = posixpath.join(storage.experiment_fs_path, LEDGER_FILE)
        self._is_stored_in_place = isinstance(self._filesystem, pafs.LocalFileSystem)
        self.path = Path(
            self._stored if self._is_stored_in_place else Path(storage.local_working_directory) / LEDGER_FILE
        )

    def fetch(self) -> None:
        """Bring down what an earlier attempt sent up."""
        if self._is_stored_in_place:
            return
        self.path.unlink(missing_ok=True)
        if self._filesystem.get_file_info(self._stored).type == pafs.FileType.File:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._filesystem.open_input_stream(self._stored) as reader, self.path.open("wb") as writer:
                shutil.copyfileobj(reader, writer)

    def push(self) -> None:
        """Send up what there is."""
        if self._is_stored_in_place or not self.path.exists():
            return
        with self.path.open("rb") as reader, self._filesystem.open_output_stream(self._stored) as writer:
            shutil.copyfileobj(reader, writer)
