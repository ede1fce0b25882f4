"""Rows, and processes of their own, that tests of the store share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from hdet_service.store.models import Base, Job


def make_job(id: str = "01J0000000000000000000000A", **values: Any) -> Job:
    """A job that was just submitted, with what a test says otherwise."""
    given = {
        "name": "digits",
        "owner": "ann",
        "spec": {"name": "digits", "entrypoint": "digits"},
        "state": "QUEUED",
        "reason": "Submitted",
        "created_s": 1000.0,
        "updated_s": 1000.0,
    }
    return Job(id=id, **{**given, **values})


def count(session: Session, table: type[Base]) -> int:
    """How many rows a table has."""
    return session.scalar(select(func.count()).select_from(table)) or 0


def start_child(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A process of its own that runs ``code`` with this repository's packages."""
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'service'}"},
    )


def read_line(child: subprocess.Popen[str]) -> str:
    """The next line that a child prints."""
    line = child.stdout.readline() if child.stdout else ""
    if not line:
        raise AssertionError(f"the child ended with {child.wait(10)} instead of saying something")
    return line.strip()
