"""A service on this machine: `up`, `status`, `down`."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hdet_ray.exceptions import ConfigError, HDETError
from hdet_service.cluster_state import (
    ClusterError,
    NotRunningError,
    PortTakenError,
    Running,
    UnreachableError,
    read_state,
    state_path,
    write_state,
)
from hdet_service.head import Head, start_head
from hdet_service.logs import Logs
from hdet_service.processes import ProcessId, holder_of
from hdet_service.reaching import START_TIMEOUT_S, control, control_patiently, is_ready
from hdet_service.settings import Settings
from hdet_service.starter import PREFIX

_POLL_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Up:
    """What `up` found or made."""

    running: Running
    is_new: bool
    is_first_token: bool
    """The operator's token was made just now."""


def up(
    settings: Settings,
    *,
    address: str | None = None,
    num_cpus: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Up:
    """Start Ray and the service, or find them running; returns when ``/readyz`` answers.

    Args:
        settings: The service's.
        address: GCS of a cluster to join in place of a head of our own.
        num_cpus: Logical CPUs of our own head.
        say: Told what happens, for people.

    Raises:
        PortTakenError: something else listens on the port; says who.
        ClusterError: the service did not start, and why.
        HeadError: Ray did not start.
    """
    settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    known = read_state(settings.home)
    if known is not None and _is_usable(known):
        _check_same(known, settings, address)
        _ensure_actor(known)
        _wait_ready(known)
        return Up(running=known, is_new=False, is_first_token=False)
    if known is not None:
        clean_up(known)
    has_token = settings.token_path.exists()
    running = _joined(settings, address) if address is not None else _with_own_head(settings, num_cpus, say)
    try:
        say("Starting the service …")
        _ensure_actor(running, is_first=True)
        _wait_ready(running)
    except HDETError:
        down(settings.home)
        raise
    is_first_token = not has_token and settings.token_path.exists()
    return Up(running=running, is_new=True, is_first_token=is_first_token)


def down(home: Path, *, stops_drivers: bool = True) -> bool:
    """End what `up` started, and nothing else; False where there was nothing.

    Drivers end with our own head: their jobs are taken up again by the next `up`.

    Args:
        home: The service's.
        stops_drivers: On a cluster that was joined, end our drivers too; without, they go on alone.
    """
    running = read_state(home)
    if running is None:
        return False
    if running.supervisor is not None and running.supervisor.pid != os.getpid():
        running.supervisor.terminate()
        # It takes all of it down itself, as on Ctrl-C.
        if running.supervisor.wait(30.0) and read_state(home) is None:
            return True
    if running.head is None:
        control(running, {"action": "end", "stops_drivers": stops_drivers})
        state_path(home).unlink(missing_ok=True)
    else:
        clean_up(running)
    return True


def clean_up(running: Running) -> None:
    """Keep what drivers have written, then end our head with all that came from it."""
    if running.head is not None:
        # Asked first, so that the last lines are written before they are copied.
        running.head.process.terminate()
        running.head.process.wait(10.0)
        keep_logs(running)
        running.head.stop()
    state_path(running.settings.home).unlink(missing_ok=True)


def keep_logs(running: Running) -> None:
    """Copy what the head's drivers have written: its folder goes with it."""
    if running.head is None or not running.head.driver_logs.is_dir():
        return
    logs = Logs(running.settings.logs_path, running.settings.max_log_bytes)
    for source in sorted(running.head.driver_logs.glob(f"job-driver-{PREFIX}*.log")):
        try:
            logs.copy(source.stem.removeprefix("job-driver-"), source)
        except (OSError, ValueError):  # a full disk, a name of somebody else's making
            continue


def status(home: Path) -> dict[str, Any]:
    """What runs, as `hdet status --json` prints it.

    Raises:
        NotRunningError: nothing was started from this home.
    """
    running = read_state(home)
    if running is None:
        raise NotRunningError(f"no service was started from {home}; start one with `hdet up`")
    pid, epoch, jobs = _from_database(running.settings.database_path)
    head = running.head
    return {
        "url": running.url,
        "ready": is_ready(running.settings.local_url),
        "controller": {"pid": pid, "epoch": epoch},
        "head": {"pid": None if head is None else head.process.pid, "address": running.address},
        "jobs": jobs,
    }


def check_port(settings: Settings) -> None:
    """The service's port is free.

    Raises:
        PortTakenError: names who listens there.
        ConfigError: the address is none of this machine's.
    """
    import socket

    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except PermissionError as error:
            raise ConfigError(
                f"port {settings.port} needs root; take one above 1023, such as 8470"
            ) from error
        except OSError as error:
            if error.errno != 98:  # EADDRINUSE
                raise ConfigError(f"host={settings.host!r} can't be listened on: {error.strerror}") from error
            raise PortTakenError(
                f"port {settings.port} is taken by {holder_of(settings.port)}; end that, or choose another "
                "with --port"
            ) from error


def with_new_head(running: Running, *, num_cpus: int | None = None) -> Running:
    """The same service on a new head, remembered."""
    return _on_own_head(running.settings, num_cpus, running.supervisor)


def ensure_actor(running: Running, *, is_patient: bool = True) -> None:
    """Find the controller's actor, or make it, and wait until it is ready.

    Args:
        running: The service.
        is_patient: Wait for one that is there and does not answer; otherwise it is replaced.

    Raises:
        ClusterError: it does not start, and why.
    """
    _ensure_actor(running, is_patient=is_patient)
    _wait_ready(running)


def _with_own_head(settings: Settings, num_cpus: int | None, say: Callable[[str], None]) -> Running:
    check_port(settings)
    say("Starting Ray …")
    return _on_own_head(settings, num_cpus, None)


def _on_own_head(settings: Settings, num_cpus: int | None, supervisor: ProcessId | None) -> Running:
    def remember(head: Head) -> None:
        write_state(replace(_running(settings, head.address, head), supervisor=supervisor))

    start_head(settings, num_cpus=num_cpus, remember=remember)
    running = read_state(settings.home)
    if running is None:
        raise ClusterError(
            f"another `hdet down` of {settings.home} ended what was starting; run `hdet up` again"
        )
    return running


def _joined(settings: Settings, address: str) -> Running:
    """A cluster of somebody else's, which may have our actor already."""
    running = _running(settings, address, None)
    told = control_patiently(running, {"action": "status", "is_patient": True})
    if not told["is_there"]:
        check_port(settings)
    elif told["home"] != str(settings.home):
        raise ClusterError(
            f"Ray at {address} runs the service of {told['home']}, and a cluster has one; end that with "
            "`hdet down`, or join another cluster"
        )
    write_state(running)
    return running


def _running(settings: Settings, address: str, head: Head | None) -> Running:
    cluster_id = None if head is None else head.cluster_id
    own = settings.model_copy(update={"ray_address": address, "cluster_id": cluster_id})
    return Running(url=own.public_url, address=address, head=head, settings=own)


def _ensure_actor(running: Running, *, is_first: bool = False, is_patient: bool = True) -> None:
    ask = control_patiently if is_patient else control
    ask(running, {"action": "ensure", "admit": is_first, "is_patient": is_patient})


def _wait_ready(running: Running) -> None:
    """Asks the listener itself: the address that clients use may lead here only later, or from elsewhere."""
    until = time.monotonic() + START_TIMEOUT_S
    next_look = time.monotonic() + 2.0
    while not is_ready(running.settings.local_url):
        if time.monotonic() > until:
            raise ClusterError(
                f"waited {START_TIMEOUT_S:g} s for {running.settings.local_url}/readyz: {_problem(running)}"
            )
        if time.monotonic() > next_look:
            problem = _problem(running)
            if problem is not None and "can't be listened on" not in problem:
                raise ClusterError(problem)
            next_look = time.monotonic() + 5.0
        time.sleep(_POLL_S)


def _problem(running: Running) -> str | None:
    """What the actor says is wrong; None where it says nothing, or not in time."""
    try:
        told = control(running, {"action": "status"}).get("problem")
    except UnreachableError:
        return None
    return None if told is None else str(told)


def _is_usable(running: Running) -> bool:
    return running.head.is_alive() if running.head is not None else is_ready(running.settings.local_url)


def _check_same(running: Running, settings: Settings, address: str | None) -> None:
    """`up` twice is fine; with another port or cluster it would be another service on the same home."""
    differs = (settings.host, settings.port) != (running.settings.host, running.settings.port)
    if differs or (address is not None and address != running.address):
        raise ClusterError(
            f"a service of {settings.home} runs at {running.url} on Ray {running.address}; end it with "
            "`hdet down` first, or set HDET_HOME to another folder"
        )


def _from_database(path: Path) -> tuple[int | None, int | None, dict[str, int]]:
    """Pid and epoch of the controller and the number of jobs by state, read beside the controller."""
    if not path.exists():
        return None, None, {}
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=2.0)) as connection:
            row = connection.execute("SELECT pid, epoch FROM controller WHERE id = 1").fetchone()
            jobs = dict(connection.execute("SELECT state, COUNT(*) FROM jobs GROUP BY state").fetchall())
    except sqlite3.Error:
        return None, None, {}
    return (None, None, jobs) if row is None else (int(row[0]), int(row[1]), jobs)
