"""Uploaded working directories: files named by their own SHA-256, checked before anyone unpacks them.

Kept in the service's home, because Ray's own copy goes with its head. A retry uploads them to Ray again.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import logging
import os
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session

from hdet_service.package_check import check_zip
from hdet_service.problems import Invalid, RequestTimeout, Unavailable
from hdet_service.reading import too_large
from hdet_service.states import TERMINAL, State
from hdet_service.store.database import Store
from hdet_service.store.models import Job, Package
from hdet_service.transitions import audit

log = logging.getLogger(__name__)

CHUNK_TIMEOUT_S = 60.0
_BATCH_BYTES = 1 << 20
_INCOMING = ".incoming-"
_MAX_DROPPED = 100


@dataclass(frozen=True, slots=True)
class Received:
    """An upload that was taken."""

    row: Package
    is_new: bool


class Packages:
    """The folder of packages and their rows.

    Args:
        max_bytes: Of one package.
    """

    def __init__(self, store: Store, folder: Path, max_bytes: int) -> None:
        self._store = store
        self._folder = folder
        self.max_bytes = max_bytes
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in folder.glob(f"{_INCOMING}*"):  # uploads that the last process did not finish
            left.unlink(missing_ok=True)

    def path_of(self, sha256: str) -> Path:
        """Where a package lies, if it does."""
        return package_path(self._folder, sha256)

    async def get(self, sha256: str) -> Package | None:
        """Its row; None where there is none."""
        return await self._store.read(lambda session: session.get(Package, sha256))

    async def receive(self, sha256: str, chunks: AsyncIterator[bytes], owner: str) -> Received:
        """Take an upload.

        Raises:
            Invalid: another hash than it was named by, or a zip that must not be unpacked.
            TooLarge: above the cap; the rest is not read.
            RequestTimeout: nothing more arrives.
            Unavailable: no space left.
        """
        draft = self._folder / f"{_INCOMING}{secrets.token_hex(16)}"
        try:
            size_bytes = await self._write(draft, sha256, chunks)
            await asyncio.to_thread(check_zip, draft)
            now = self._store.clock()

            def keep(session: Session) -> Received:
                # Inside the write: `drop_unused` deletes a file where no row names it any more.
                _settle(draft, self.path_of(sha256))
                return _keep(session, sha256, size_bytes, owner, now)

            return await self._store.write(keep)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise Unavailable(
                "no space is left for packages; delete old files on the service's disk and send it again",
                retry_after_s=60,
                slug="disk-full",
            ) from error
        finally:
            draft.unlink(missing_ok=True)

    async def _write(self, draft: Path, sha256: str, chunks: AsyncIterator[bytes]) -> int:
        digest = hashlib.sha256()
        size_bytes = 0
        batch = bytearray()
        with draft.open("xb") as file:
            os.chmod(file.fileno(), 0o600)
            async for chunk in _timed(chunks):
                size_bytes += len(chunk)
                if size_bytes > self.max_bytes:
                    raise too_large(self.max_bytes)
                digest.update(chunk)
                batch += chunk
                if len(batch) >= _BATCH_BYTES:
                    await asyncio.to_thread(file.write, bytes(batch))
                    batch.clear()
            await asyncio.to_thread(_finish, file, bytes(batch))
        if digest.hexdigest() != sha256:
            message = f"the {size_bytes} bytes that arrived have SHA-256 {digest.hexdigest()}"
            raise Invalid(
                f"{message}, not {sha256}; the upload was cut or changed, or the hash is another file's",
                errors=[{"field": "sha256", "message": message}],
            )
        return size_bytes


def package_path(folder: Path, sha256: str) -> Path:
    """Name of a package's file; ``.zip``, since Ray asks for it."""
    return folder / f"{sha256}.zip"


def drop_unused(session: Session, folder: Path, *, before_s: float, now_s: float) -> int:
    """Delete packages that were used last before then, row and file; how many they were.

    One that a job which has not ended names stays: a retry uploads it to Ray again.
    """
    named = func.json_extract(Job.spec, "$.runtime_env.working_dir")
    going_on = [state.value for state in State if state not in TERMINAL]
    is_needed = exists().where(Job.state.in_(going_on), named == Package.sha256)
    query = select(Package).where(Package.used_s < before_s, ~is_needed).limit(_MAX_DROPPED)
    rows = session.scalars(query).all()
    for row in rows:
        session.delete(row)
        audit(
            session,
            actor="controller",
            action="package.delete",
            job_id=None,
            before={"sha256": row.sha256, "size_bytes": row.size_bytes},
            after=None,
            reason="nobody has used it for long",
            now_s=now_s,
        )
    session.flush()
    for row in rows:
        package_path(folder, row.sha256).unlink(missing_ok=True)
    return len(rows)


async def _timed(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    while True:
        try:
            async with asyncio.timeout(CHUNK_TIMEOUT_S):
                chunk = await anext(chunks, None)
        except TimeoutError as error:
            raise RequestTimeout(f"nothing arrived for {CHUNK_TIMEOUT_S:g} s; send it again") from error
        if chunk is None:
            return
        yield chunk


def _finish(file: BinaryIO, rest: bytes) -> None:
    file.write(rest)
    file.flush()
    os.fsync(file.fileno())


def _settle(draft: Path, path: Path) -> None:
    draft.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the name too
    finally:
        os.close(folder)


def _keep(session: Session, sha256: str, size_bytes: int, owner: str, now: float) -> Received:
    row = session.get(Package, sha256)
    if row is not None:
        row.used_s = now
        return Received(row, is_new=False)
    row = Package(sha256=sha256, size_bytes=size_bytes, created_by=owner, created_s=now, used_s=now)
    session.add(row)
    audit(
        session,
        actor=owner,
        action="package.upload",
        job_id=None,
        before=None,
        after={"sha256": sha256, "size_bytes": size_bytes},
        reason="",
        now_s=now,
    )
    return Received(row, is_new=True)
