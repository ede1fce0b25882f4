"""The working directory of a submission: the uploaded package, with the wheels that it names laid out in it.

Ray would copy the whole virtual environment for a wheel (20 s and 1.7 GB a package), and it tells
wheels apart by file name only. A wheel is a zip whose entries go beside the package's own modules, which Ray
puts on every process's path; so that is what happens, without pip and without the network. What a wheel
depends on has to be installed already, or be a wheel of the package too.
"""

from __future__ import annotations

import lzma
import posixpath
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hdet_service.starter import LaunchRefusedError

_UNREADABLE = (zipfile.BadZipFile, RuntimeError, EOFError, zlib.error, lzma.LZMAError)
"""What `zipfile` raises for damage, encryption, and compression that it does not know."""
_DATA_SCHEMES = ("purelib", "platlib")
"""Parts of a wheel's ``.data`` folder that belong on the path; scripts and headers don't."""


def is_packaged_wheel(requirement: str) -> bool:
    """Whether a requirement is a wheel inside the package, as ``./dep-1.0-py3-none-any.whl``."""
    path = requirement.strip()
    return path.endswith(".whl") and "://" not in path and not path.startswith(("/", "-"))


@contextmanager
def prepared_working_dir(
    working_dir: Path | str | None, wheels: Sequence[str], scratch: Path
) -> Iterator[Path | str | None]:
    """What Ray is given as ``working_dir`` for the time of the block.

    Args:
        working_dir: A package (a zip) on this machine, a remote URI, or nothing.
        wheels: Paths of wheels inside the package.
        scratch: Folder for the zip that is put together.

    Raises:
        LaunchRefusedError: the package is gone, or a wheel isn't in it or can't be read.
    """
    if not wheels:
        if isinstance(working_dir, Path) and not working_dir.is_file():
            raise LaunchRefusedError(f"package {working_dir.stem} is gone from the service; upload it again")
        yield working_dir
        return
    if not isinstance(working_dir, Path):
        raise LaunchRefusedError(
            f"pip names {wheels[0]!r}, which has to lie in an uploaded package; upload one with it"
        )
    scratch.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=scratch))
    try:
        yield _with_wheels(working_dir, wheels, folder / f"{working_dir.stem[:16]}.zip")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _with_wheels(package: Path, wheels: Sequence[str], target: Path) -> Path:
    try:
        with zipfile.ZipFile(package) as source, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as out:
            taken = set()
            for info in source.infolist():
                taken.add(info.filename)
                _copy(source, info, out, info.filename)
            for wheel in wheels:
                _lay_out(source, wheel, out, taken)
    except FileNotFoundError as error:
        raise LaunchRefusedError(
            f"package {package.stem} is gone from the service; upload it again"
        ) from error
    except LaunchRefusedError:
        raise  # a RuntimeError too
    except _UNREADABLE as error:
        raise LaunchRefusedError(
            f"package {package.stem}, or a wheel in it, is no zip that can be read ({error}); build it again "
            "without encryption, compressed by deflate, and upload it"
        ) from error
    return target


def _lay_out(source: zipfile.ZipFile, wheel: str, out: zipfile.ZipFile, taken: set[str]) -> None:
    name = posixpath.normpath(wheel.strip())
    try:
        member = source.getinfo(name)
    except KeyError as error:
        raise LaunchRefusedError(
            f"pip names {wheel!r}, which is not in the package; add it or name another"
        ) from error
    with source.open(member) as stream, zipfile.ZipFile(stream) as unpacked:
        for info in unpacked.infolist():
            place = _place(info.filename)
            if place is None or place in taken:  # the package's own files win
                continue
            taken.add(place)
            _copy(unpacked, info, out, place)


def _place(name: str) -> str | None:
    """Where an entry of a wheel goes, or None for what does not belong on the path."""
    if name.startswith("/") or ".." in name.split("/"):
        raise LaunchRefusedError(f"a wheel's entry {name!r} climbs out of its folder; build the wheel again")
    first, _, rest = name.partition("/")
    if not first.endswith(".data"):
        return name
    scheme, _, below = rest.partition("/")
    return below if scheme in _DATA_SCHEMES and below else None


def _copy(source: zipfile.ZipFile, info: zipfile.ZipInfo, out: zipfile.ZipFile, name: str) -> None:
    # Times and modes stay as they are: the same package gives the same bytes, which Ray has already then.
    entry = zipfile.ZipInfo(name, date_time=info.date_time)
    entry.external_attr = info.external_attr
    entry.compress_type = zipfile.ZIP_DEFLATED
    if info.is_dir():
        out.writestr(entry, b"")
        return
    with source.open(info) as reader, out.open(entry, "w", force_zip64=True) as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)
