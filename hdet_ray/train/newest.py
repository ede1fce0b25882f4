"""Which of a run's checkpoints it goes on from."""

from __future__ import annotations

import logging
import pickle
import posixpath
from dataclasses import dataclass
from pathlib import Path

import pyarrow.fs as pafs
import ray.train
from ray.train import Checkpoint, CheckpointConsistencyMode

from hdet_ray.exceptions import CheckpointError, RestoreError
from hdet_ray.train.checkpoints import Loaded, load
from hdet_ray.train.job_run import JobRun
from hdet_ray.train.layout import HDET_FOLDER
from hdet_ray.train.reports import has_user_files
from hdet_ray.train.storage import newest_complete, resolve

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What rank 0 found in the run's storage."""

    ours: Checkpoint | None
    """Our folder inside the newest complete checkpoint."""
    has_user_files: bool


NOTHING = Found(ours=None, has_user_files=False)


def find_newest(newest: Checkpoint | None, job: JobRun | None) -> Found:
    """Look through what Ray knows of the run, newest first; on rank 0.

    Args:
        newest: What Ray would resume from.
        job: The job that the run belongs to, which may say where to go back to.

    Raises:
        CheckpointError: There are checkpoints of ours, and none is complete.
    """
    if newest is None:
        if job is not None:
            job.choose([])
        return NOTHING
    reported = ray.train.get_all_reported_checkpoints(consistency_mode=CheckpointConsistencyMode.COMMITTED)
    filesystem, _ = resolve(newest.path, newest.filesystem)
    # Ray orders them by score where the user has asked for one; folders are named by time.
    by_time = sorted(reported, key=lambda entry: posixpath.basename(entry.checkpoint.path), reverse=True)
    older = [entry.checkpoint for entry in by_time if entry.checkpoint.path != newest.path]
    candidates = {posixpath.join(each.path, HDET_FOLDER): each for each in [newest, *older]}
    if job is not None:
        candidates |= job.pinned()
    ours = [path for path in candidates if filesystem.get_file_info(path).type != pafs.FileType.NotFound]
    if not ours:
        logger.warning("none of the run's %d checkpoints is of attach(): starting at step 0", len(candidates))
        return Found(ours=None, has_user_files=True)
    chosen = None if job is None else job.choose(ours)
    path = newest_complete(filesystem, ours) if chosen is None else chosen
    if path is None:
        raise CheckpointError(
            f"none of the run's {len(ours)} checkpoints is complete (newest: {ours[0]}); start under a new "
            "RunConfig(name=…), or put back the files that its manifest lists"
        )
    return Found(
        ours=Checkpoint(path, filesystem=filesystem), has_user_files=has_user_files(candidates[path])
    )


def load_found(folder: str | Path, rank: int) -> Loaded:
    """Read, on any rank, what rank 0 has found complete.

    Raises:
        CheckpointError: torch can't load it, on this rank or any other.
        RestoreError: This rank can't read it now, and may another time.
    """
    try:
        return load(folder)
    except CheckpointError as error:
        if isinstance(error.__cause__, pickle.UnpicklingError):
            raise
        raise RestoreError(
            f"rank {rank} can't read the checkpoint that rank 0 found complete: {error}"
        ) from error
