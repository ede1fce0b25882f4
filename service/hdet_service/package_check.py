"""Whether a zip file may be unpacked: nothing climbs out, nothing links, nothing explodes."""

from __future__ import annotations

import stat
import struct
import zipfile
from pathlib import Path

from hdet_service.problems import Invalid

MAX_FILES = 50_000
MAX_UNPACKED_BYTES = 4 << 30
MAX_RATIO = 200
"""Unpacked bytes a packed one, above `RATIO_FROM_BYTES`: deflate reaches 1,032 on zeros, code 3 to 10."""
RATIO_FROM_BYTES = 64 << 20
_MAX_DIRECTORY_BYTES = 16 << 20
_MAX_NAME_CHARS = 1024

_END = struct.Struct("<4s4H2LH")  # the end of central directory record
_END_MARK = b"PK\x05\x06"
_ZIP64_MARK = b"PK\x06\x07"


def check_zip(path: Path) -> None:
    """Refuse a package that is no zip file, or must not be unpacked.

    Raises:
        Invalid: says which entry, and why.
    """
    _check_directory(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (
        zipfile.BadZipFile,
        NotImplementedError,  # how `zipfile` says that an entry asks for a newer version of the format
        UnicodeDecodeError,
        ValueError,
        struct.error,
    ) as error:
        raise _refused("the file", f"can't be read as a zip file ({error})") from error
    _check_sizes(entries, path.stat().st_size)
    seen: set[str] = set()
    for entry in entries:
        _check_entry(entry)
        name = entry.filename.rstrip("/")
        if name in seen:
            raise _refused(entry.filename, "stands twice; which one counts is unclear")
        seen.add(name)


def _check_directory(path: Path) -> None:
    """Look at the size of the list of files before anything reads it into memory."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - (1 << 16) - 2 * _END.size))
        tail = file.read()
    at = tail.rfind(_END_MARK)
    if at < 0 or len(tail) - at < _END.size:
        raise _refused("the file", "is no zip file; pack the folder's content with `zip -r`")
    (*_, directory_bytes, _, _) = _END.unpack_from(tail, at)
    if tail[max(0, at - 20) : at].startswith(_ZIP64_MARK) or directory_bytes > _MAX_DIRECTORY_BYTES:
        raise _refused("the file", f"lists more files than {MAX_FILES} in the long form (zip64); pack fewer")


def _check_sizes(entries: list[zipfile.ZipInfo], packed_bytes: int) -> None:
    if len(entries) > MAX_FILES:
        raise _refused("the file", f"has {len(entries)} entries; at most {MAX_FILES} are unpacked")
    unpacked_bytes = sum(entry.file_size for entry in entries)
    if unpacked_bytes > MAX_UNPACKED_BYTES:
        raise _refused(
            "the file", f"unpacks to {unpacked_bytes} bytes; at most {MAX_UNPACKED_BYTES} are allowed"
        )
    if unpacked_bytes > RATIO_FROM_BYTES and unpacked_bytes > MAX_RATIO * packed_bytes:
        raise _refused(
            "the file", f"unpacks to {unpacked_bytes} bytes, more than {MAX_RATIO} times its own size"
        )


def _check_entry(entry: zipfile.ZipInfo) -> None:
    name = entry.filename
    if not name or len(name) > _MAX_NAME_CHARS or any(ord(letter) < 32 for letter in entry.orig_filename):
        raise _refused(name, "has a name that is empty, too long, or holds control characters")
    if name.startswith("/") or "\\" in name or name[1:2] == ":":
        raise _refused(name, "is an absolute or a Windows path; pack names relative to the folder")
    if ".." in name.split("/"):
        raise _refused(name, "climbs out of the folder by '..'")
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind == stat.S_IFLNK:
        raise _refused(name, "is a link; pack the file itself (`zip -r` without `-y`)")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _refused(name, "is a device, pipe or socket; only files and folders are unpacked")
    if entry.flag_bits & 1:
        raise _refused(name, "is encrypted; pack it without a password")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _refused(name, f"uses compression {entry.compress_type}; use deflate or none")


def _refused(name: str, why: str) -> Invalid:
    shown = name if name == "the file" else repr(name[:200])
    return Invalid(f"the package is refused: {shown} {why}", errors=[{"field": "body", "message": why}])
