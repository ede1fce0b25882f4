"""Checkpoints of a job as they lie in its storage, and their weights as a file.

Read off the storage itself, which the job's own processes write and prune: no table could be truer.
"""

from __future__ import annotations

import asyncio
import logging
import posixpath
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import pyarrow.fs as pafs

from hdet_ray.exceptions import CheckpointError, ConfigError
from hdet_ray.train.layout import HDET_FOLDER
from hdet_ray.train.manifest import MANIFEST_FILE, read_manifest
from hdet_ray.train.storage import opener, resolve
from hdet_service.pins import pin, pin_name, unpin, unpin_others
from hdet_service.problems import Conflict, Unavailable

log = logging.getLogger(__name__)

T = TypeVar("T")

_CHUNK_BYTES = 1 << 20
_PREFIX = "checkpoint_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A complete checkpoint."""

    round: int
    step: int
    attempt: int
    path: str
    at_s: float | None
    size_bytes: int

    @property
    def pin_name(self) -> str:
        """Of its pin."""
        return pin_name(self.round, self.attempt)

    def to_json(self) -> dict[str, Any]:
        """As the API shows it."""
        return asdict(self)


class Storage:
    """Reads jobs' storage in threads of its own: one that hangs must not hold up anything else.

    Args:
        scratch: Folder for files on their way out.
        within_s: Bound of a call, in seconds.
        pin_within_s: Bound of keeping a checkpoint, which may be a copy of all its files.
    """

    def __init__(self, scratch: Path, within_s: float = 30.0, pin_within_s: float = 300.0) -> None:
        self._scratch = scratch
        self._within_s = within_s
        self._pin_within_s = pin_within_s
        self.rolling_back = asyncio.Lock()
        """One rollback at a time: each lets go of the pins of those before it."""
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="hdet-storage")

    async def checkpoints(self, storage_path: str | None) -> list[Saved]:
        """See `list_saved`.

        Raises:
            Unavailable: the storage does not answer.
        """
        return await self._call(list_saved, storage_path)

    async def checkpoint(self, storage_path: str | None, round: int) -> Saved:
        """See `saved_at`.

        Raises:
            Conflict: that round has no checkpoint.
            Unavailable: the storage does not answer.
        """
        return await self._call(saved_at, storage_path, round)

    async def weights(self, saved: Saved) -> BinaryIO:
        """See `exported`.

        Raises:
            Conflict: the checkpoint is damaged, or was pruned meanwhile.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, exported, saved, self._scratch)

    async def pin(self, storage_path: str, saved: Saved) -> bool:
        """See `pins.pin`.

        Raises:
            Conflict: the run has deleted it meanwhile.
            Unavailable: the storage does not answer, or takes too long.
        """
        folder = posixpath.basename(saved.path)
        return await self._call(pin, storage_path, folder, saved.pin_name, within_s=self._pin_within_s)

    async def unpin(self, storage_path: str, saved: Saved) -> None:
        """See `pins.unpin`."""
        await self._call(unpin, storage_path, saved.pin_name)

    async def unpin_others(self, storage_path: str, saved: Saved) -> None:
        """See `pins.unpin_others`."""
        await self._call(unpin_others, storage_path, saved.pin_name)

    async def _call(self, read: Callable[..., T], *arguments: Any, within_s: float | None = None) -> T:
        loop = asyncio.get_running_loop()
        bound_s = within_s or self._within_s
        try:
            async with asyncio.timeout(bound_s):
                return await loop.run_in_executor(self._threads, read, *arguments)
        except TimeoutError as error:
            raise Unavailable(
                f"the job's storage gave no answer within {bound_s:g} s; try again", slug="storage"
            ) from error


def list_saved(storage_path: str | None) -> list[Saved]:
    """The complete checkpoints of a run, oldest first; none before its first.

    Args:
        storage_path: Folder of the run, a path or a URI; None where no worker has told it yet.

    Raises:
        Unavailable: the storage does not answer.
    """
    if storage_path is None:
        return []
    try:
        filesystem, root = resolve(storage_path)
        infos = filesystem.get_file_info(pafs.FileSelector(root, allow_not_found=True))
    except (OSError, ConfigError) as error:
        log.warning("storage does not answer: path=%s cause=%s", storage_path, error)
        raise Unavailable("the job's storage does not answer; try again", slug="storage") from error
    folders = [info.path for info in infos if info.base_name.startswith(_PREFIX)]
    found = [saved for folder in folders if (saved := _read(filesystem, folder)) is not None]
    return sorted(found, key=lambda saved: (saved.round, saved.attempt))


def saved_at(storage_path: str | None, round: int) -> Saved:
    """The newest checkpoint of a round.

    Raises:
        Conflict: that round has none; names those that have.
    """
    known = list_saved(storage_path)
    of_round = [saved for saved in known if saved.round == round]
    if not of_round:
        rounds = sorted({saved.round for saved in known})
        which = f"rounds {', '.join(map(str, rounds))} have one" if rounds else "the job has none yet"
        raise Conflict(f"round {round} has no checkpoint: {which}")
    return of_round[-1]


def exported(saved: Saved, scratch: Path) -> BinaryIO:
    """The weights of a checkpoint, in a file that has no name any more: it goes with its reader.

    Raises:
        Conflict: the checkpoint is damaged, or was pruned meanwhile.
    """
    # It imports torch, which the controller needs for nothing else: its restart would take seconds longer.
    from hdet_ray.train.export import export_weights

    scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        try:
            return export_weights(saved.path, Path(folder) / "model.safetensors").open("rb")
        except CheckpointError as error:
            raise Conflict(f"the checkpoint of round {saved.round} can't be exported: {error}") from error


def chunks_of(file: BinaryIO) -> Iterator[bytes]:
    """The file's bytes; closes it."""
    with file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


def _read(filesystem: pafs.FileSystem, folder: str) -> Saved | None:
    """A checkpoint by its manifest; None for one that is unfinished, damaged or just being pruned."""
    inside = posixpath.join(folder, HDET_FOLDER)
    try:
        manifest = read_manifest(opener(filesystem, inside), inside)
        info = filesystem.get_file_info(posixpath.join(inside, MANIFEST_FILE))
    except (CheckpointError, OSError):
        return None
    return Saved(
        round=manifest.round,
        step=manifest.step,
        attempt=manifest.attempt,
        path=folder if filesystem.type_name == "local" else f"{filesystem.type_name}://{folder}",
        at_s=None if info.mtime is None else info.mtime.timestamp(),
        size_bytes=sum(entry.size_bytes for entry in manifest.files.values()),
    )
