"""Reports to Ray: the user's go on as they are, and ours go along with them.

Ray resumes a run from its newest reported checkpoint and shows that report's metrics as
``Result.metrics``. So a report of ours carries the newest metrics of the user's own reports, and once
the user reports checkpoints, ours travel inside theirs and are no reports of their own any more: then
the user alone says when checkpoints are made, as without us.

`ray.train.report` hands every call to one object a process, ``TrainFnUtils``, which Ray made to be
patched. Two methods of that one object are replaced, so a function that the user's module imported
long before is caught too, and everything ends with the worker.
"""

from __future__ import annotations

import posixpath
import shutil
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import ray.train
from ray.train import Checkpoint, CheckpointConsistencyMode
from ray.train.v2._internal.execution.train_fn_utils import TrainFnUtils, get_train_fn_utils
from ray.train.v2.api.report_config import CheckpointUploadMode

from hdet_ray.exceptions import ConfigError
from hdet_ray.train.layout import HDET_FOLDER
from hdet_ray.train.liveness import Liveness
from hdet_ray.train.storage import resolve, upload

UploadFn = Callable[[Checkpoint, str], Checkpoint]
HasStored = Callable[["StagedCheckpoint", Checkpoint], None]

_BRIDGE = "_hdet_bridge"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCheckpoint:
    """A checkpoint of ours that lies in the run's storage."""

    round: int
    step: int
    path: str
    """Ray's checkpoint that holds it."""


class StagedCheckpoint:
    """A finished checkpoint in a local folder, which goes with the last reference to it."""

    def __init__(self, root: Path) -> None:
        self.round = self.step = 0
        """Of the boundary that it was taken at."""
        root.mkdir(parents=True, exist_ok=True)
        self.user_files: Checkpoint | None = None
        """A checkpoint whose files of the user's go along."""
        self.folder = Path(tempfile.mkdtemp(dir=root))
        # Uploads run in Ray's thread and may be repeated: only "nobody holds it" says that it is done.
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)


class ReportBridge:
    """Stands between the user's loop and Ray's reports, in one worker process."""

    def __init__(self, utils: TrainFnUtils, checkpoint_every_rounds: int) -> None:
        self.checkpoint_every_rounds = checkpoint_every_rounds
        self.checkpoint_sync = False
        """Rounds begin when the checkpoint before them is stored and Ray knows it."""
        self.digest_every_rounds: int | None = None
        """Rounds between comparisons of parameters across replicas; None compares nothing."""
        self.liveness: Liveness | None = None
        """This rank's beats, where it has peers."""
        self.is_attached = False
        """A scheduler publishes through it."""
        self.user_metrics: dict[str, Any] = {}
        """Newest metrics that the user's loop reported on this rank."""
        self.user_reports_checkpoints = False
        """The user's loop has reported a checkpoint on this rank."""
        self.user_may_report_checkpoints = False
        """It did on this rank before the run was started again."""
        self.own_metrics: dict[str, Any] = {}
        """``hdet/…``, as of the newest boundary."""
        self.saves_checkpoints = utils.is_distributed()
        """False in Ray's local mode, which has no storage."""
        self.on_stored: Callable[[StoredCheckpoint], None] | None = None
        """Called when a checkpoint of ours lies in the run's storage, in whichever thread put it there."""
        self.on_close: list[Callable[[], None]] = []
        """Called when the user's loop has ended, however it did."""
        self._staged: StagedCheckpoint | None = None
        self._newest_upload: Callable[[], _Upload | None] = lambda: None
        self._forward = utils.report
        self._get_newest = utils.get_checkpoint

    @property
    def is_behind(self) -> bool:
        """A checkpoint of ours waits in this rank's line: Ray takes a report each time it polls."""
        newest = self._newest_upload()
        return newest is not None and not newest.has_started

    def newest_checkpoint(self) -> Checkpoint | None:
        """What Ray would resume from, the user's or ours."""
        return self._get_newest()

    def new_staged(self) -> StagedCheckpoint:
        """An empty folder for the next checkpoint."""
        return StagedCheckpoint(_staging_root())

    def clear_staged(self) -> None:
        """Delete what workers of an earlier attempt left behind: one that is killed tidies up nothing."""
        if self.saves_checkpoints and ray.train.get_context().get_local_rank() == 0:
            shutil.rmtree(_staging_root(), ignore_errors=True)

    def close(self) -> None:
        """The user's loop has ended: nothing is staged any more. Uploads under way keep their folders."""
        self._staged = None
        for act in self.on_close:
            act()

    def stage(self, staged: StagedCheckpoint | None) -> None:
        """Keep a checkpoint for the user's next ones to carry; None on ranks whose ones carry none."""
        self._staged = staged

    def publish(self, staged: StagedCheckpoint | None) -> None:
        """Report a checkpoint of ours. A barrier: every rank calls it, one of them with a checkpoint."""
        if not self.saves_checkpoints:
            self._send({**self.user_metrics, **self.own_metrics})
            return
        if staged is None:
            self._send({**self.user_metrics, **self.own_metrics}, mode=CheckpointUploadMode.ASYNC)
            return
        newest = _Upload(staged, self._has_stored)
        # Weak: a report that Ray drops (it does when a worker is lost) must not count as waiting for ever.
        self._newest_upload = weakref.ref(newest)
        self._send(
            {**self.user_metrics, **self.own_metrics},
            checkpoint=Checkpoint.from_directory(staged.folder),
            mode=CheckpointUploadMode.ASYNC,
            upload_fn=newest,
        )

    def report_of_user(
        self,
        metrics: dict[str, Any],
        checkpoint: Checkpoint | None = None,
        checkpoint_dir_name: str | None = None,
        checkpoint_upload_mode: CheckpointUploadMode = CheckpointUploadMode.SYNC,
        delete_local_checkpoint_after_upload: bool | None = None,
        checkpoint_upload_fn: UploadFn | None = None,
        validation: Any = False,
    ) -> None:
        """What `ray.train.report` calls in the user's loop: Ray's own, plus ``hdet/…`` and our files."""
        self.user_metrics = dict(metrics)
        if checkpoint is not None:
            self.user_reports_checkpoints = True
            if self._staged is not None and self.saves_checkpoints:
                if checkpoint_upload_mode == CheckpointUploadMode.NO_UPLOAD:
                    _add_ours(self._staged, checkpoint)
                else:
                    checkpoint_upload_fn = _carrying(self._staged, checkpoint_upload_fn, self._has_stored)
        self._forward(
            metrics={**metrics, **self.own_metrics},
            checkpoint=checkpoint,
            checkpoint_dir_name=checkpoint_dir_name,
            checkpoint_upload_mode=checkpoint_upload_mode,
            delete_local_checkpoint_after_upload=delete_local_checkpoint_after_upload,
            checkpoint_upload_fn=checkpoint_upload_fn,
            validation=validation,
        )

    def checkpoint_of_user(self) -> Checkpoint | None:
        """What `ray.train.get_checkpoint` returns in the user's loop: None where it holds ours alone."""
        newest = self._get_newest()
        return newest if newest is not None and has_user_files(newest) else None

    def publish_whole(self, staged: StagedCheckpoint | None) -> None:
        """Report a checkpoint of ours and wait until Ray has it and all before it; every rank calls it.

        Where the user reports checkpoints, the newest one's files go along: the run resumes from this one.
        """
        if staged is not None and (self.user_reports_checkpoints or self.user_may_report_checkpoints):
            staged.user_files = self._get_newest()
        self.publish(staged)
        ray.train.get_all_reported_checkpoints(consistency_mode=CheckpointConsistencyMode.COMMITTED)

    def _has_stored(self, staged: StagedCheckpoint, stored: Checkpoint) -> None:
        if self.on_stored is not None:
            self.on_stored(StoredCheckpoint(round=staged.round, step=staged.step, path=stored.path))

    def _send(
        self,
        metrics: dict[str, Any],
        checkpoint: Checkpoint | None = None,
        mode: CheckpointUploadMode = CheckpointUploadMode.SYNC,
        upload_fn: UploadFn | None = None,
    ) -> None:
        self._forward(
            metrics=metrics,
            checkpoint=checkpoint,
            checkpoint_dir_name=None,
            checkpoint_upload_mode=mode,
            delete_local_checkpoint_after_upload=False,
            checkpoint_upload_fn=upload_fn,
            validation=False,
        )


def bridge_reports(
    checkpoint_every_rounds: int | None = None, checkpoint_sync: bool | None = None
) -> ReportBridge:
    """This worker's bridge; the first call in a worker builds it.

    Args:
        checkpoint_every_rounds: Replaces what the bridge was built with; None leaves it (1 at first).
        checkpoint_sync: The same; False at first.

    Raises:
        ConfigError: Not inside a Ray Train worker.
    """
    try:
        utils = get_train_fn_utils()
    except RuntimeError as error:
        raise ConfigError(
            "attach() was called outside a Ray Train worker; call it in train_loop_per_worker, or use the "
            "scheduler alone under another launcher"
        ) from error
    bridge: ReportBridge | None = getattr(utils, _BRIDGE, None)
    if bridge is None:
        bridge = ReportBridge(utils, checkpoint_every_rounds or 1)
        vars(utils).update(
            {
                _BRIDGE: bridge,
                "report": bridge.report_of_user,
                "get_checkpoint": bridge.checkpoint_of_user,
            }
        )
    elif checkpoint_every_rounds is not None:
        bridge.checkpoint_every_rounds = checkpoint_every_rounds
    if checkpoint_sync is not None:
        bridge.checkpoint_sync = checkpoint_sync
    return bridge


def has_user_files(checkpoint: Checkpoint) -> bool:
    """A checkpoint of Ray's holds something beside our folder."""
    filesystem, path = resolve(checkpoint.path, checkpoint.filesystem)
    infos = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    return any(info.base_name != HDET_FOLDER for info in infos)


def _staging_root() -> Path:
    # Below Ray's session, which is where people look for what fills their disk.
    return Path(ray.train.get_context().get_storage().local_working_directory) / "hdet-staged"


class _Upload:
    """Puts a checkpoint of ours into the run's storage, in Ray's thread."""

    def __init__(self, staged: StagedCheckpoint, has_stored: HasStored) -> None:
        self._staged = staged
        self._has_stored = has_stored
        self._storage = ray.train.get_context().get_storage()
        self.has_started = False
        """All reports before it were taken: Ray's uploads run one after another, each with its report."""

    def __call__(self, _: Checkpoint, dir_name: str) -> Checkpoint:
        self.has_started = True
        path = self._storage.build_checkpoint_path_from_name(dir_name)
        stored = Checkpoint(path, filesystem=self._storage.storage_filesystem)
        if self._staged.user_files is not None:
            _copy_users(self._staged.user_files, stored)
        _add_ours(self._staged, stored)
        self._has_stored(self._staged, stored)
        return stored


def _carrying(staged: StagedCheckpoint, upload_fn: UploadFn | None, has_stored: HasStored) -> UploadFn:
    storage = ray.train.get_context().get_storage()

    def put(checkpoint: Checkpoint, dir_name: str) -> Checkpoint:
        stored = (upload_fn or storage.persist_current_checkpoint)(checkpoint, dir_name)
        _add_ours(staged, stored)
        has_stored(staged, stored)
        return stored

    return put


def _copy_users(newest: Checkpoint, stored: Checkpoint) -> None:
    """The user's own files of an earlier checkpoint, into a new one."""
    filesystem, path = resolve(newest.path, newest.filesystem)
    target, target_path = resolve(stored.path, stored.filesystem)
    target.create_dir(target_path, recursive=True)
    for info in filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True)):
        if info.base_name != HDET_FOLDER:
            place = posixpath.join(target_path, info.base_name)
            pafs.copy_files(info.path, place, source_filesystem=filesystem, destination_filesystem=target)


def _add_ours(staged: StagedCheckpoint, stored: Checkpoint) -> None:
    filesystem, path = resolve(stored.path, stored.filesystem)
    upload(staged.folder, filesystem, posixpath.join(path, HDET_FOLDER))
