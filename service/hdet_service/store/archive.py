"""What a backup is: one ``tar.gz`` with a manifest, the database, kept logs, and packages.

Nothing that an archive names is believed: every name is taken apart before anything is written, so
that no member climbs out of its folder, and each content is compared with what was promised.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from hdet_service.store.errors import BackupError

FORMAT = 1
MANIFEST_NAME = "manifest.json"
DATABASE_NAME = "database.sqlite3"
LOGS_FOLDER = "logs"
PACKAGES_FOLDER = "packages"

_PACKAGE_NAME = re.compile(r"([0-9a-f]{64})\.zip")
_CHUNK_BYTES = 1 << 20
_MAX_MANIFEST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupManifest:
    """The archive's first member."""

    format: int
    release: str
    """Version of `hdet_ray` that made it."""
    schema: str
    created_s: float
    """Seconds since the epoch, UTC."""
    database_bytes: int
    database_sha256: str

    def to_json(self) -> bytes:
        """As it stands in the archive."""
        return json.dumps(asdict(self), indent=1).encode()


def read_manifest(member: tarfile.TarInfo | None, archive: tarfile.TarFile, path: Path) -> BackupManifest:
    """The manifest from an archive's first member.

    Raises:
        BackupError: It is none, or of a newer format.
    """
    if (
        member is None
        or member.name != MANIFEST_NAME
        or not member.isreg()
        or member.size > _MAX_MANIFEST_BYTES
    ):
        raise BackupError(
            f"{path} is no backup: its first member is not {MANIFEST_NAME}; take one with `hdet backup`"
        )
    try:
        data: dict[str, Any] = json.loads(_opened(archive, member).read())
        made_with, release = int(data["format"]), str(data["release"])
        if made_with > FORMAT:
            raise BackupError(
                f"{path} has format {made_with}, made by release {release}; this release reads up to format "
                f"{FORMAT}: restore it with that release or a newer one"
            )
        return BackupManifest(
            format=made_with,
            release=release,
            schema=str(data["schema"]),
            created_s=float(data["created_s"]),
            database_bytes=int(data["database_bytes"]),
            database_sha256=str(data["database_sha256"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise BackupError(f"{path} has a damaged {MANIFEST_NAME} ({error!r}); use another backup") from error


def checked_name(member: tarfile.TarInfo) -> PurePosixPath:
    """Where a member goes, relative to the home.

    Raises:
        BackupError: It is no plain file, climbs out of its folder, or is nothing that a backup holds.
    """
    name = PurePosixPath(member.name)
    is_safe = (
        member.isreg()
        and not name.is_absolute()
        and "\0" not in member.name
        and member.name == str(name)
        and ".." not in name.parts
    )
    is_ours = (
        member.name == DATABASE_NAME
        or (name.parts[:1] == (LOGS_FOLDER,) and len(name.parts) > 1)
        or (
            name.parts[:1] == (PACKAGES_FOLDER,)
            and len(name.parts) == 2
            and package_of(name.name) is not None
        )
    )
    if not is_safe or not is_ours:
        raise BackupError(
            f"member {member.name!r} is nothing that a backup holds: the archive was made or changed by "
            "something else; nothing was restored"
        )
    return name


def package_of(file_name: str) -> str | None:
    """The hash that a package's file is named by; None for other files."""
    match = _PACKAGE_NAME.fullmatch(file_name)
    return match[1] if match else None


def extract(archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> str:
    """Write a member's content to a new file.

    Returns:
        Its SHA-256, hexadecimal.
    """
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    digest = hashlib.sha256()
    with target.open("xb") as file:
        target.chmod(0o600)
        source = _opened(archive, member)
        while chunk := source.read(_CHUNK_BYTES):
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _opened(archive: tarfile.TarFile, member: tarfile.TarInfo) -> BinaryIO:
    source = archive.extractfile(member)
    if source is None:
        raise BackupError(f"member {member.name!r} has no content; use another backup")
    return source  # type: ignore[return-value]
