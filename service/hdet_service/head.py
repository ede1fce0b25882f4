"""Ray's head as a child of ours: own token, own folder, own ports, everything on loopback.

``ray start --block`` in a session of its own, so that ending that one process ends all of it.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from hdet_ray.exceptions import HDETError
from hdet_service.processes import CLUSTER_MARK, ProcessId, end_marked
from hdet_service.settings import Settings

_PORTS = range(20_000, 32_000)
"""Outside what Ray gives its workers (10002-19999) and what the system hands out by itself (from 32768)."""
_START_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 10.0
_PORT_OPTIONS = (
    "port",
    "dashboard-port",
    "ray-client-server-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "metrics-export-port",
    "node-manager-port",
    "object-manager-port",
)
_SHORT_FOLDER = "/tmp"
"""Not the user's TMPDIR, which may be long: paths of sockets have at most 107 characters."""


class HeadError(HDETError, RuntimeError):
    """Ray's head did not start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A head that runs, or ran."""

    cluster_id: str
    address: str
    """``host:port`` of its GCS."""
    process: ProcessId
    temp_dir: Path

    def is_alive(self) -> bool:
        """Whether its process runs."""
        return self.process.is_alive()

    @property
    def driver_logs(self) -> Path:
        """Where its drivers' output lies."""
        return self.temp_dir / "session_latest" / "logs"

    def stop(self) -> None:
        """End it and all that came from it, and delete its folder."""
        self.process.terminate()
        self.process.wait(_STOP_TIMEOUT_S)
        end_marked(self.cluster_id)
        shutil.rmtree(self.temp_dir, ignore_errors=True)

    def to_json(self) -> dict[str, object]:
        """As the state file keeps it."""
        return {**asdict(self), "temp_dir": str(self.temp_dir)}

    @classmethod
    def from_json(cls, data: dict[str, object]) -> Head:
        """Read back."""
        process = data["process"]
        if not isinstance(process, dict):
            raise TypeError("process")
        return cls(
            cluster_id=str(data["cluster_id"]),
            address=str(data["address"]),
            process=ProcessId(**process),
            temp_dir=Path(str(data["temp_dir"])),
        )


def start_head(settings: Settings, *, num_cpus: int | None, remember: Callable[[Head], None]) -> Head:
    """Start a head and wait until it takes connections.

    Args:
        settings: Of the service.
        num_cpus: Logical CPUs that it offers; None: more than the machine has, so that replicas of a small
            job may share cores.
        remember: Told of it before it is waited for: whatever happens then, `down` finds it.

    Raises:
        HeadError: it ended, or did not answer in time; says what its log says.
    """
    cluster_id = secrets.token_hex(8)
    temp_dir = Path(tempfile.mkdtemp(prefix="hdet-", dir=_SHORT_FOLDER))
    ports = dict(zip(_PORT_OPTIONS, free_ports(len(_PORT_OPTIONS)), strict=True))
    address = f"127.0.0.1:{ports['port']}"
    log = settings.home / "head.log"
    with log.open("wb") as output:
        child = subprocess.Popen(
            _command(ports, temp_dir, num_cpus or max(16, 4 * (os.cpu_count() or 1))),
            env=head_environment(settings, cluster_id),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=temp_dir,
        )
    head = Head(cluster_id=cluster_id, address=address, process=ProcessId.of(child.pid), temp_dir=temp_dir)
    remember(head)
    try:
        _wait_for(child, ports["dashboard-port"], log)
    except HeadError:
        head.stop()
        raise
    return head


def head_environment(settings: Settings, cluster_id: str | None) -> dict[str, str]:
    """What Ray's processes, and ours that talk to them, find around them."""
    environment = {
        name: value
        for name, value in os.environ.items()
        # Another cluster's address, and a token that jobs have no business with.
        if name not in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "HDET_TOKEN")
    }
    interpreter = os.path.dirname(sys.executable)
    environment |= {
        # A job's `python` is the one that the service runs on.
        "PATH": os.pathsep.join([interpreter, environment.get("PATH", os.defpath)]),
        "HDET_HOME": str(settings.home),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONUNBUFFERED": "1",
    }
    if cluster_id is not None:
        environment |= {
            CLUSTER_MARK: cluster_id,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(_ray_token(settings)),
            # Every listener on loopback: `--node-ip-address` alone does not do that.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        }
    return environment


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, outside of Ray's and the system's own ranges.

    Raises:
        HeadError: none are left.
    """
    candidates = secrets.SystemRandom().sample(_PORTS, len(_PORTS))
    free: list[int] = []
    for port in candidates:
        if _is_free(port):
            free.append(port)
            if len(free) == count:
                return free
    raise HeadError(f"no {count} free ports between {_PORTS.start} and {_PORTS.stop}; end what listens there")


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _command(ports: dict[str, int], temp_dir: Path, num_cpus: int) -> list[str]:
    return [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        "--head",
        "--block",
        "--disable-usage-stats",
        "--node-ip-address=127.0.0.1",
        "--dashboard-host=127.0.0.1",
        *(f"--{name}={port}" for name, port in ports.items()),
        # 0: any free port, so two clusters on a machine don't hand out the same ones.
        "--min-worker-port=0",
        "--max-worker-port=0",
        f"--num-cpus={num_cpus}",
        f"--temp-dir={temp_dir}",
    ]


def _ray_token(settings: Settings) -> Path:
    """Ray's own token: made once, for this user's eyes alone."""
    path = settings.home / "ray_token"
    if not path.exists():
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32))
    return path


def _wait_for(child: subprocess.Popen[bytes], dashboard_port: int, log: Path) -> None:
    """The dashboard listens last, and jobs need it."""
    until = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < until:
        if child.poll() is not None:
            raise HeadError(f"Ray's head ended with code {child.returncode}: {_tail(log)} (all of it: {log})")
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.settimeout(0.5)
            if probe.connect_ex(("127.0.0.1", dashboard_port)) == 0:
                return
        time.sleep(0.1)
    raise HeadError(f"Ray's head did not answer within {_START_TIMEOUT_S:g} s; see {log}")


def _tail(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:500] if lines else "no output"
