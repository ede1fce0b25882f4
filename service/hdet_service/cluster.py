"""A service on this machine: `up`, `status`, `down`, and the file that remembers what `up` has started.

``cluster.json`` in the service's home names the head that is ours, or the cluster that was joined; only what
stands there is ever ended.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hdet_ray.exceptions import ConfigError, HDETError
from hdet_service.head import Head, head_environment, start_head
from hdet_service.logs import Logs
from hdet_service.processes import ProcessId, holder_of
from hdet_service.settings import Settings
from hdet_service.starter import PREFIX

READY_TIMEOUT_S = 120.0
_CONTROL_TIMEOUT_S = 120.0
_POLL_S = 0.1


class ClusterError(HDETError, RuntimeError):
    """The service did not start, or does not answer."""


class PortTakenError(ClusterError):
    """Something else listens on the service's port."""


class NotRunningError(ClusterError):
    """There is no service of this home."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """What `up` started, or joined."""

    url: str
    address: str
    """Of Ray's GCS."""
    head: Head | None
    """Ours; None where a cluster was joined."""
    settings: Settings
    supervisor: ProcessId | None = None

    @property
    def cluster_id(self) -> str | None:
        return None if self.head is None else self.head.cluster_id


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
        "ready": is_ready(running.url),
        "controller": {"pid": pid, "epoch": epoch},
        "head": {"pid": None if head is None else head.process.pid, "address": running.address},
        "jobs": jobs,
    }


def is_ready(url: str, timeout_s: float = 6.0) -> bool:
    """Whether ``/readyz`` answers with 200."""
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=timeout_s) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def control(running: Running, request: dict[str, Any]) -> dict[str, Any]:
    """Ask `actor_control` something.

    Raises:
        ClusterError: it could not do it; says what it said.
    """
    settings = running.settings
    asked = {**request, "address": running.address, "settings": settings.model_dump(mode="json")}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "hdet_service.actor_control"],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            timeout=_CONTROL_TIMEOUT_S,
            env=head_environment(settings, running.cluster_id),
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ClusterError(
            f"Ray at {running.address} does not answer within {_CONTROL_TIMEOUT_S:g} s"
        ) from error
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise ClusterError(
            f"Ray at {running.address} refused: {lines[-1][:500] if lines else done.returncode}"
        )
    answer: dict[str, Any] = json.loads(done.stdout)
    if "error" in answer:
        raise ClusterError(f"the controller on Ray at {running.address} did not start: {answer['error']}")
    return answer


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


def state_path(home: Path) -> Path:
    """The file that remembers."""
    return home / "cluster.json"


def write_state(running: Running) -> None:
    """Remember what was started, before anything can go wrong with it."""
    data = {
        "url": running.url,
        "address": running.address,
        "head": None if running.head is None else running.head.to_json(),
        "settings": running.settings.model_dump(mode="json"),
        "supervisor": None
        if running.supervisor is None
        else {"pid": running.supervisor.pid, "started_s": running.supervisor.started_s},
    }
    path = state_path(running.settings.home)
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    draft.chmod(0o600)
    draft.replace(path)


def read_state(home: Path) -> Running | None:
    """What was started from this home; None where nothing was, or the file can't be read."""
    try:
        data = json.loads(state_path(home).read_text(encoding="utf-8"))
        return Running(
            url=data["url"],
            address=data["address"],
            head=None if data["head"] is None else Head.from_json(data["head"]),
            settings=Settings.model_validate_json(json.dumps(data["settings"])),
            supervisor=None if data["supervisor"] is None else ProcessId(**data["supervisor"]),
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ClusterError(
            f"{state_path(home)} can't be read ({error}); delete it once nothing of that service runs"
        ) from error


def with_new_head(running: Running, *, num_cpus: int | None = None) -> Running:
    """The same service on a new head, remembered."""
    return _on_own_head(running.settings, num_cpus, running.supervisor)


def ensure_actor(running: Running) -> None:
    """Find the controller's actor, or make it, and wait until it is ready.

    Raises:
        ClusterError: it does not start, and why.
    """
    _ensure_actor(running)
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
    told = control(running, {"action": "status"})
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


def _ensure_actor(running: Running, *, is_first: bool = False) -> None:
    control(running, {"action": "ensure", "admit": is_first})


def _wait_ready(running: Running) -> None:
    until = time.monotonic() + READY_TIMEOUT_S
    next_look = time.monotonic() + 2.0
    while not is_ready(running.url):
        if time.monotonic() > until:
            raise ClusterError(f"the service does not answer at {running.url}/readyz: {_problem(running)}")
        if time.monotonic() > next_look:
            problem = _problem(running)
            if problem is not None and "can't be listened on" not in problem:
                raise ClusterError(problem)
            next_look = time.monotonic() + 5.0
        time.sleep(_POLL_S)


def _problem(running: Running) -> str | None:
    told = control(running, {"action": "status"}).get("problem")
    return None if told is None else str(told)


def _is_usable(running: Running) -> bool:
    return running.head.is_alive() if running.head is not None else is_ready(running.url)


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
