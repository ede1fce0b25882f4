"""The manifest of a checkpoint: what the folder promises to hold.

It is written last. A folder without one is unfinished; one whose files differ from it was
truncated or written by two writers. Neither is ever taken for a checkpoint.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from hdet_ray.exceptions import CheckpointError

MANIFEST_FILE = "manifest.json"
MANIFEST_VERSION = 1
_CHUNK_BYTES = 1 << 20

OpenFile = Callable[[str], BinaryIO]
"""Opens a file of the checkpoint by its name; raises `FileNotFoundError` where there is none."""


class NewerVersionError(CheckpointError):
    """A newer version of the library wrote the checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """Size and digest of one file."""

    size_bytes: int
    blake2b: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupLayout:
    """One parameter group of the optimizer: its tensors in order, as a digest, and two counts for people."""

    num_tensors: int
    num_elements: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Contents of a complete checkpoint, readable without torch."""

    version: int
    round: int
    step: int
    world_size: int
    """Ranks that wrote it; any number can read it."""
    files: Mapping[str, FileEntry]
    groups: tuple[GroupLayout, ...]
    attempt: int = 0
    """Which start of a job's run wrote it; 0 where it is nobody's job."""

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, sort_keys=True)


def describe_files(directory: Path, names: list[str]) -> dict[str, FileEntry]:
    """Sizes and digests of files as they lie on disk.

    Args:
        directory: The folder that holds them.
        names: File names inside it.
    """
    entries = {}
    for name in names:
        with (directory / name).open("rb") as stream:
            size_bytes, digest = _size_and_digest(stream)
        entries[name] = FileEntry(size_bytes=size_bytes, blake2b=digest)
    return entries


def read_manifest(open_file: OpenFile, where: str) -> Manifest:
    """Read a manifest, and nothing else of the checkpoint.

    Args:
        open_file: Opens the checkpoint's files.
        where: The checkpoint's place, for messages.

    Raises:
        CheckpointError: There is none, it can't be parsed, or a newer version wrote it.
    """
    try:
        with open_file(MANIFEST_FILE) as stream:
            raw = stream.read()
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{where} holds no {MANIFEST_FILE}: the checkpoint was never finished; use the one before it"
        ) from error
    try:
        fields: dict[str, Any] = json.loads(raw)
        version = fields["version"]
        if not isinstance(version, int):
            raise TypeError(f"version={version!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise _unreadable(where, error) from error
    if version > MANIFEST_VERSION:
        raise NewerVersionError(
            f"{where} has manifest version {version}, this hdet_ray reads up to {MANIFEST_VERSION}; "
            "upgrade hdet_ray, or resume from a checkpoint that this version wrote"
        )
    try:
        return _from_fields(fields)
    except (KeyError, TypeError, AttributeError) as error:
        raise _unreadable(where, error) from error


def verify(open_file: OpenFile, where: str) -> Manifest:
    """Read every file of a checkpoint and compare it with the manifest.

    Returns:
        The manifest, when all of it holds.

    Raises:
        CheckpointError: As `read_manifest`, or a file is missing, truncated or of another writer.
    """
    manifest = read_manifest(open_file, where)
    for name, expected in manifest.files.items():
        try:
            with open_file(name) as stream:
                size_bytes, digest = _size_and_digest(stream)
        except FileNotFoundError as error:
            raise CheckpointError(f"{where} lacks {name}, which its manifest lists; {_TAKE_OLDER}") from error
        if size_bytes != expected.size_bytes:
            raise CheckpointError(
                f"{where}/{name} has {size_bytes} bytes, its manifest says {expected.size_bytes}: "
                f"truncated, or of another writer; {_TAKE_OLDER}"
            )
        if digest != expected.blake2b:
            raise CheckpointError(
                f"{where}/{name} has digest {digest[:12]}, its manifest says {expected.blake2b[:12]}: "
                f"damaged, or of another writer; {_TAKE_OLDER}"
            )
    return manifest


_TAKE_OLDER = "use the checkpoint before it"


def _from_fields(fields: Mapping[str, Any]) -> Manifest:
    return Manifest(
        version=int(fields["version"]),
        round=int(fields["round"]),
        step=int(fields["step"]),
        world_size=int(fields["world_size"]),
        files={name: FileEntry(**entry) for name, entry in fields["files"].items()},
        groups=tuple(GroupLayout(**group) for group in fields["groups"]),
        attempt=int(fields.get("attempt", 0)),
    )


def _unreadable(where: str, error: Exception) -> CheckpointError:
    return CheckpointError(f"{where}/{MANIFEST_FILE} can't be read ({error!r}); {_TAKE_OLDER}")


def _size_and_digest(stream: BinaryIO) -> tuple[int, str]:
    # 20 bytes tell apart what accidents can produce; this is no defence against forgery.
    hasher = hashlib.blake2b(digest_size=20)
    size_bytes = 0
    while chunk := stream.read(_CHUNK_BYTES):
        hasher.update(chunk)
        size_bytes += len(chunk)
    return size_bytes, hasher.hexdigest()
