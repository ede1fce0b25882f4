"""The image's own scripts: what starts what, in which order it ends, and what is refused.

Ray and `hdet` are stand-ins that write down what happens to them; `make image-check` tries the image with the
real ones.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.rendering import ROOT

SCRIPTS = ROOT / "deploy/bin"
PATIENCE_S = 20.0

# Stays until it is asked to end, or until the file ``NAME.end`` says with which code.
_STAND_IN = """\
#!/bin/bash
if [[ "$1" == health-check ]]; then [[ -e "$LOGS/ray_is_there" ]]; exit; fi
trap 'echo "NAME ended" >> "$LOGS/log"; exit 0' TERM
[[ NAME == ray ]] && touch "$LOGS/ray_is_there"
echo "NAME $*" >> "$LOGS/log"
until [[ -e "$LOGS/NAME.end" ]]; do sleep 0.05; done
exit "$(cat "$LOGS/NAME.end")"
"""


class Container:
    """A script that runs with stand-ins, and what they wrote down."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("ray", "hdet"):
            program = folder / name
            program.write_text(_STAND_IN.replace("NAME", name), encoding="utf-8")
            program.chmod(0o755)
        self.log = folder / "log"
        self.log.touch()
        self.process: subprocess.Popen[str] | None = None

    def start(self, *command: str, token: str | None = "t" * 64) -> subprocess.Popen[str]:
        environment = {"PATH": f"{self.folder}:{SCRIPTS}:{os.defpath}", "LOGS": str(self.folder)}
        if token is not None:
            environment["RAY_AUTH_TOKEN"] = token
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        return self.process

    def wait_for(self, line: str) -> None:
        until = time.monotonic() + PATIENCE_S
        while line not in self.lines():
            assert time.monotonic() < until, (line, self.lines())
            time.sleep(0.02)

    def lines(self) -> list[str]:
        return self.log.read_text(encoding="utf-8").splitlines()


@pytest.fixture
def container(tmp_path: Path) -> Iterator[Container]:
    made = Container(tmp_path)
    yield made
    for name in ("ray", "hdet"):
        (tmp_path / f"{name}.end").write_text("0")
    if made.process is not None:
        made.process.wait(PATIENCE_S)


STARTED = (
    "ray start --head --block --port=6379 --dashboard-host=0.0.0.0 --metrics-export-port=8080 "
    "--disable-usage-stats --num-cpus=0"
)
SUPERVISED = "hdet up --supervise --json --address 127.0.0.1:6379"


def test_a_head_without_a_token_is_refused(container: Container) -> None:
    process = container.start("hdet-head", token=None)
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2
    assert "RAY_AUTH_TOKEN_PATH" in output
    assert container.lines() == []


def test_the_controller_starts_once_ray_is_there(container: Container) -> None:
    container.start("hdet-head", "--num-cpus=0")
    container.wait_for(SUPERVISED)
    assert container.lines() == [STARTED, SUPERVISED]


def test_the_supervisor_waits_for_a_ray_that_comes_later(container: Container) -> None:
    process = container.start("hdet-beside-ray", "10.0.0.1:6379")
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting for Ray at 10.0.0.1:6379\n"
    assert container.lines() == []
    (container.folder / "ray_is_there").touch()
    container.wait_for("hdet up --supervise --json --address 10.0.0.1:6379")


def test_asked_to_end_the_controller_ends_before_ray(container: Container) -> None:
    process = container.start("hdet-head", "--num-cpus=0")
    container.wait_for(SUPERVISED)
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_S) == 0
    assert container.lines() == [STARTED, SUPERVISED, "hdet ended", "ray ended"]


@pytest.mark.parametrize(("first", "code", "expected"), [("ray", 3, 3), ("ray", 0, 1), ("hdet", 4, 4)])
def test_the_end_of_either_ends_the_container_with_an_error(
    container: Container, first: str, code: int, expected: int
) -> None:
    process = container.start("hdet-head", "--num-cpus=0")
    container.wait_for(SUPERVISED)
    (container.folder / f"{first}.end").write_text(str(code))
    assert process.wait(PATIENCE_S) == expected
    other = {"ray": "hdet", "hdet": "ray"}[first]
    assert container.lines() == [STARTED, SUPERVISED, f"{other} ended"]
