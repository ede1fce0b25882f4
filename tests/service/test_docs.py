"""What the pages tell people to type works, as it stands there, against a real service on a real Ray.

The ``bash`` blocks of a page run in order in one shell that ends at the first failure. Blocks of other kinds
are for reading.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = ("service.md", "api.md", "operations.md")
PORT_IN_PAGES = "8470"
PAGE_TIMEOUT_S = 1500

_BASH = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_METRIC = re.compile(r"\bhdet_[a-z0-9_]+")
_ENVIRONMENT = re.compile(r"\bHDET_([A-Z_]+)\b")


def text_of(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def blocks_of(page: str) -> list[str]:
    return _BASH.findall(text_of(page))


def free_port() -> int:
    """One that Ray does not hand to its workers."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if not 10_000 <= port < 20_000:
            return port


def script_of(page: str, port: int) -> str:
    """The page's blocks as one script that says where it is."""
    parts = ["set -eu -o pipefail"]
    for number, block in enumerate(blocks_of(page), start=1):
        parts.append(f'echo "=== {page}, block {number}"')
        parts.append(block.replace(PORT_IN_PAGES, str(port)))
    return "\n".join(parts)


def environment(folder: Path, port: int) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HDET_", "RAY_"))}
    programs = str(Path(sys.executable).parent)
    return kept | {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "HDET_PORT": str(port),
        "HOME": str(folder),
        "OMP_NUM_THREADS": "1",
    }


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(PAGE_TIMEOUT_S + 120)
@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_the_page_works(page: str, tmp_path: Path) -> None:
    port = free_port()
    variables = environment(tmp_path, port)
    log = tmp_path / "output.txt"
    with log.open("w") as output:
        shell = subprocess.Popen(
            ["bash", "-c", script_of(page, port)],
            cwd=tmp_path,
            env=variables,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = shell.wait(timeout=PAGE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end(shell, tmp_path / "hdet-home", variables)
    assert code == 0, f"{page} ended with {code}:\n" + "\n".join(log.read_text().splitlines()[-60:])
    assert processes_with(f"HDET_HOME={tmp_path / 'hdet-home'}") == []


def end(shell: subprocess.Popen[bytes], home: Path, variables: dict[str, str]) -> None:
    """Leave nothing of a page behind, whatever became of it."""
    if shell.poll() is None:
        os.killpg(shell.pid, signal.SIGKILL)
        shell.wait()
    subprocess.run(
        ["hdet", "down"],
        env=variables | {"HDET_HOME": str(home)},
        check=False,
        capture_output=True,
        timeout=120,
    )


def processes_with(variable: str) -> list[str]:
    """Command lines of the processes whose environment holds a variable."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if variable.encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.append((entry / "cmdline").read_text().replace("\0", " "))
        except (OSError, ValueError):
            continue
    return found


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_commands_and_they_parse(page: str) -> None:
    assert len(blocks_of(page)) >= 5
    outcome = subprocess.run(
        ["bash", "-n", "-c", script_of(page, 8470)], check=False, capture_output=True, text=True
    )
    assert outcome.returncode == 0, outcome.stderr


@pytest.mark.parametrize("page", [*PAGES, "metrics.md"])
def test_metrics_that_a_page_names_exist(page: str) -> None:
    named = set(_METRIC.findall(text_of(page))) - {"hdet_service", "hdet_ray"}
    known = set(_METRIC.findall(text_of("metrics.md").split("<!-- table:")[1]))
    assert {name for name in named if name not in known} <= {"hdet_autolr_", "hdet_"}


@pytest.mark.parametrize("page", PAGES)
def test_settings_that_a_page_names_exist(page: str) -> None:
    from hdet_service.settings import ClientSettings, Settings

    set_for_jobs = {"JOB_ID", "CONTROL"}
    named = set(_ENVIRONMENT.findall(text_of(page))) - set_for_jobs
    known = {name.upper() for name in [*Settings.model_fields, *ClientSettings.model_fields]}
    assert named <= known


def test_python_in_a_page_names_what_exists() -> None:
    from hdet_service import client

    blocks = re.findall(r"^```python\n(.*?)^```$", text_of("service.md"), re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        compile(block, "service.md", "exec")
        for method in re.findall(r"\bclient\.([a-z_]+)\(", block):
            assert hasattr(client.HDETClient, method), method


def test_every_alert_has_its_section() -> None:
    rules = (ROOT / "deploy" / "prometheus" / "rules.yaml").read_text(encoding="utf-8")
    anchors = set(re.findall(r"docs/operations\.md#(\S+)", rules))
    headings = {title.lower() for title in re.findall(r"^### (\w+)$", text_of("operations.md"), re.MULTILINE)}
    assert anchors
    assert headings == anchors


def test_the_api_page_shows_every_call() -> None:
    description = json.loads((DOCS / "openapi.json").read_text(encoding="utf-8"))
    shown = re.sub(
        r"\$(?:JOB|SHA|OVERRIDE|ROUND)\b|(?<=/v1/tokens/)\w+", "{}", "\n".join(blocks_of("api.md"))
    )
    paths = {re.sub(r"\{[^}]*\}", "{}", path) for path in description["paths"]}
    missing = {path for path in paths if path not in shown}
    assert missing == set()


def test_the_commands_that_pages_show_exist() -> None:
    """Also those outside of blocks, in tables and in running text."""
    from typer.main import get_command

    from hdet_ray.cli.main import app

    root = get_command(app)
    unknown = set()
    for page in (*(DOCS / name for name in PAGES), ROOT / "README.md"):
        for words in re.findall(r"\bhdet ([a-z]+)(?: ([a-z]+))?", page.read_text(encoding="utf-8")):
            command = root.commands.get(words[0])  # type: ignore[attr-defined]
            if command is None:
                unknown.add(f"{page.name}: hdet {words[0]}")
            elif hasattr(command, "commands") and words[1] and words[1] not in command.commands:
                unknown.add(f"{page.name}: hdet {words[0]} {words[1]}")
    assert unknown == set()
