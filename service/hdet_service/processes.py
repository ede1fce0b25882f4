"""Processes of ours on this machine: found by a mark in their environment, never by name."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

CLUSTER_MARK = "HDET_CLUSTER_ID"
"""In the environment of a head that `hdet up` started, and of everything that came from it."""


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process for good: its number alone is given to another one later."""

    pid: int
    started_s: float

    @classmethod
    def of(cls, pid: int) -> ProcessId:
        """The process that has this number now."""
        return cls(pid, load_psutil().Process(pid).create_time())

    def is_alive(self) -> bool:
        """Whether it runs still."""
        psutil = load_psutil()
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started_s) < 1.0
            return bool(same and process.status() != psutil.STATUS_ZOMBIE)
        except psutil.Error:
            return False

    def terminate(self) -> None:
        """Ask it to end."""
        psutil = load_psutil()
        if self.is_alive():
            try:
                psutil.Process(self.pid).terminate()
            except psutil.Error:
                return

    def wait(self, timeout_s: float) -> bool:
        """Whether it ended within that time."""
        until = time.monotonic() + timeout_s
        while self.is_alive():
            if time.monotonic() > until:
                return False
            time.sleep(0.05)
        return True


def marked(cluster_id: str) -> list[Any]:
    """Processes that carry a cluster's mark, except this one."""
    psutil = load_psutil()
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(CLUSTER_MARK) == cluster_id:
                found.append(process)
        except psutil.Error:  # gone, or another user's
            continue
    return found


def end_marked(cluster_id: str, *, patience_s: float = 3.0) -> int:
    """End all that carry the mark: asked first, killed if they stay. How many there were."""
    count = 0
    for _ in range(10):  # what dies may leave children that are found in the next round
        found = marked(cluster_id)
        if not found:
            break
        count += len(found)
        _end(found, patience_s)
    return count


def holder_of(port: int) -> str:
    """Who listens on a port, for people."""
    psutil = load_psutil()
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.Error:
        return "a process that this user may not see"
    for connection in connections:
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
            try:
                process = psutil.Process(connection.pid)
                return f"pid {process.pid} ({' '.join(process.cmdline())[:120] or process.name()})"
            except psutil.Error:
                return f"pid {connection.pid}"
    return "a process that this user may not see"


def _end(processes: Iterable[Any], patience_s: float) -> None:
    psutil = load_psutil()
    for process in processes:
        try:
            process.terminate()
        except psutil.Error:
            continue
    _, left = psutil.wait_procs(list(processes), timeout=patience_s)
    for process in left:
        try:
            process.kill()
        except psutil.Error:
            continue
    psutil.wait_procs(left, timeout=2.0)


def load_psutil() -> Any:
    """The module `psutil`: Ray carries its own copy, and puts it on the path."""
    import ray  # noqa: F401

    import psutil  # type: ignore[import-untyped]  # isort: skip

    return psutil
