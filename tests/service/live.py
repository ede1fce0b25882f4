"""A real service on a real Ray of its own: own home, own port, own folder; ended by what started it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx

from hdet_service.head import free_ports
from hdet_service.processes import load_psutil

T = TypeVar("T")
psutil = load_psutil()

ROOT = Path(__file__).resolve().parents[2]
TERMINAL = ("SUCCEEDED", "FAILED", "CANCELED")
BYTE_LM: dict[str, Any] = {
    "name": "x",
    "entrypoint": "byte_lm",
    "config": {"preset": "tiny"},
    "replicas": {"min": 3, "max": 3},
}


class Live:
    """One home and what runs for it."""

    def __init__(self, home: Path, **settings: str) -> None:
        self.home = home
        self.port = free_ports(1)[0]
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {
            **os.environ,
            "HDET_HOME": str(home),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "service")]),
            **{f"HDET_{name.upper()}": value for name, value in settings.items()},
        }

    def hdet(self, *arguments: str, timeout_s: float = 180.0) -> subprocess.CompletedProcess[str]:
        """Run a command of ours to its end."""
        return subprocess.run(
            [sys.executable, "-m", "hdet_ray.cli.main", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def up(self) -> None:
        """Start, and wait until it is ready."""
        done = self.hdet("up", "--port", str(self.port))
        assert done.returncode == 0, done.stderr

    def down(self) -> None:
        """End."""
        done = self.hdet("down")
        assert done.returncode == 0, done.stderr

    def status(self) -> dict[str, Any]:
        """What `hdet status --json` says."""
        found: dict[str, Any] = json.loads(self.hdet("status", "--json").stdout)
        return found

    @property
    def token(self) -> str:
        return (self.home / "token").read_text()

    def ask(self, method: str, path: str, **how: Any) -> httpx.Response:
        """One request with the operator's token."""
        headers = {"Authorization": f"Bearer {self.token}", **how.pop("headers", {})}
        return httpx.request(method, f"{self.url}{path}", headers=headers, timeout=10.0, **how)

    def submit(self, **spec: Any) -> str:
        """Id of a new job."""
        answer = self.ask("POST", "/v1/jobs", json={**BYTE_LM, **spec})
        assert answer.status_code == 201, answer.text
        job_id: str = answer.json()["id"]
        return job_id

    def upload(self, package: Path) -> str:
        """Name of an uploaded working directory."""
        content = package.read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        answer = self.ask(
            "PUT", f"/v1/packages/{sha256}", content=content, headers={"Content-Type": "application/zip"}
        )
        assert answer.status_code in (200, 201), answer.text
        return sha256

    def job(self, job_id: str) -> dict[str, Any]:
        """The job as JSON."""
        found: dict[str, Any] = self.ask("GET", f"/v1/jobs/{job_id}").json()
        return found

    def wait(
        self, job_id: str, is_so: Callable[[dict[str, Any]], bool], timeout_s: float = 400
    ) -> dict[str, Any]:
        """The job, once something is so."""

        def look() -> dict[str, Any] | None:
            job = self.job(job_id)
            return job if is_so(job) else None

        return wait_for(look, timeout_s, lambda: self.describe(job_id))

    def wait_end(self, job_id: str, timeout_s: float = 400) -> dict[str, Any]:
        """The job, once it has ended."""
        return self.wait(job_id, lambda job: job["state"] in TERMINAL, timeout_s)

    def lines(self, job_id: str) -> list[str]:
        """Its kept output."""
        answer = self.ask("GET", f"/v1/jobs/{job_id}/logs", params={"limit": 200})
        return [item["line"] for item in answer.json()["items"]]

    def describe(self, job_id: str) -> str:
        """For a test that has waited in vain."""
        try:
            return json.dumps(self.job(job_id)) + "\n" + "\n".join(self.lines(job_id)[-30:])
        except httpx.HTTPError as error:
            return repr(error)

    def processes(self) -> list[Any]:
        """Everything whose environment holds this home, but this test itself."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("HDET_HOME") == str(self.home) and process.pid != os.getpid():
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def drivers(self) -> list[Any]:
        """Processes of our own driver."""
        return [p for p in self.processes() if "hdet_ray.train.driver" in p.cmdline()]


def wait_for(look: Callable[[], T | None], timeout_s: float, describe: Callable[[], str] = str) -> T:
    """What ``look`` finds; errors of a service that starts anew count as nothing found."""
    until = time.monotonic() + timeout_s
    while True:
        try:
            found = look()
        except (httpx.HTTPError, KeyError, json.JSONDecodeError):
            found = None
        if found is not None:
            return found
        assert time.monotonic() < until, f"not within {timeout_s} s: {describe()}"
        time.sleep(0.1)


@contextmanager
def live_service(**settings: str) -> Iterator[Live]:
    """Up for the time of the block."""
    home = Path(tempfile.mkdtemp(prefix="hl-"))
    service = Live(home, **settings)
    try:
        service.up()
        yield service
    finally:
        service.hdet("down")
        shutil.rmtree(home, ignore_errors=True)
