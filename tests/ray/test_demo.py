"""The demo end to end, shortened: what it leaves on disk, and that it leaves nothing else."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from hdet_ray.core.replay import read_ledger, replay

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

MARK = "HDET_TEST_MARK"
"""In the environment of the demo, hence of every process that it or Ray starts."""


def start_demo(out: Path, mark: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "hdet_ray.cli.main", "demo", "--steps", "360", "--replicas", "2"]
    environment = {**os.environ, MARK: mark, "PYTHONPATH": str(Path.cwd()), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [*command, "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def processes_with(mark: str) -> list[str]:
    """Command lines of the processes whose environment holds the mark."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue  # it has ended meanwhile, or is another user's
    return found


def ray_folders(mark: str) -> set[Path]:
    """Folders that the command lines of Ray's processes name."""
    return {Path(name) for name in re.findall(r"/tmp/hdet-\w+", " ".join(processes_with(mark)))}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """The folder that a whole demo wrote, what it printed, and its mark."""
    out, mark = tmp_path_factory.mktemp("demo"), uuid.uuid4().hex
    printed, errors = start_demo(out, mark).communicate()
    assert (out / "result.json").exists(), errors
    return out, printed, mark


def test_the_demo_leaves_no_process_behind(demo: tuple[Path, str, str]) -> None:
    assert processes_with(demo[2]) == []


def test_the_demo_ends_with_a_verdict_that_its_result_repeats(demo: tuple[Path, str, str]) -> None:
    out, printed, _ = demo
    result = json.loads((out / "result.json").read_text())
    assert result["verdict"] in " ".join(printed.split())
    assert result["search_steps"] > 0
    assert result["found_rate"] > result["given_rate"]
    assert set(result["arms"]) == {"plain", "auto", "tuned"}


def test_the_search_ends_below_plain_one_cycle_from_the_same_rate(demo: tuple[Path, str, str]) -> None:
    result = json.loads((demo[0] / "result.json").read_text())
    assert result["auto_loss"] < result["plain_loss"]


@pytest.mark.parametrize("name", ["ledger.jsonl", "plain.jsonl", "tuned.jsonl"])
def test_the_ledgers_of_the_demo_replay(demo: tuple[Path, str, str], name: str) -> None:
    ledger = read_ledger((demo[0] / name).read_text().splitlines())
    outcome = replay(ledger)
    assert outcome.departure is None
    assert outcome.rounds == len(ledger.items) > 0
    assert outcome.state.step == 360


def test_the_demo_draws_a_page_and_a_picture(demo: tuple[Path, str, str]) -> None:
    out = demo[0]
    assert "plain one-cycle, well tuned" in (out / "report.html").read_text(encoding="utf-8")
    assert (out / "report.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("signal_sent", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "sigterm"]
)
def test_a_demo_that_is_broken_off_leaves_nothing_behind(
    tmp_path: Path, signal_sent: signal.Signals, exit_code: int
) -> None:
    mark = uuid.uuid4().hex
    running = start_demo(tmp_path, mark)
    assert running.stdout is not None
    for line in running.stdout:
        if line.startswith("round"):  # its workers train
            break
    folders = ray_folders(mark)
    assert folders
    running.send_signal(signal_sent)
    _, errors = running.communicate(timeout=120)
    assert running.returncode == exit_code, errors
    assert "Traceback" not in errors
    assert processes_with(mark) == []
    assert not any(folder.exists() for folder in folders)
