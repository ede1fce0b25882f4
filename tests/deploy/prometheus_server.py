"""A real Prometheus on a free port, with the shipped rules at a small time scale."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from deploy.grafana.source import Prometheus, Window, expand, variables_for
from deploy.prometheus.rules import rules_yaml
from deploy.prometheus.time_scale import TimeScale
from tests.deploy.observed import dashboard, panels, tool

SCRAPE_INTERVAL_S = 0.5


@contextmanager
def scraping(target: str, folder: Path, scale: TimeScale, token: str | None = None) -> Iterator[Prometheus]:
    """Prometheus scrapes ``target`` (host:port) inside, and is gone afterwards."""
    (folder / "rules.yaml").write_text(rules_yaml(scale), encoding="utf-8")
    job: dict[str, object] = {"job_name": "hdet", "static_configs": [{"targets": [target]}]}
    if token is not None:
        job["authorization"] = {"credentials": token}
    config = {
        "global": {"scrape_interval": f"{round(SCRAPE_INTERVAL_S * 1000)}ms", "scrape_timeout": "500ms"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [job],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    address = f"127.0.0.1:{free_port()}"
    command = [
        tool("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
        "--log.level=error",
    ]
    process = subprocess.Popen(command)
    source = Prometheus(f"http://{address}")
    try:
        wait_for(lambda: _is_ready(address), "Prometheus is ready", limit_s=30.0)
        yield source
    finally:
        source.close()
        process.terminate()
        process.wait(timeout=10.0)


def alert_state(source: Prometheus, alert: str, run: str | None = None) -> str:
    """``pending``, ``firing``, or ``inactive``, as Prometheus' API has it; ``None``: of no run."""
    found = [
        one["state"]
        for one in source.get("alerts")["alerts"]
        if one["labels"]["alertname"] == alert and one["labels"].get("run") == run
    ]
    return found[0] if found else "inactive"


def queries(board: dict[str, Any], run: str) -> Iterator[tuple[str, str]]:
    """Each panel's and each event's name and expression, for one run."""
    variables = variables_for(run, SCRAPE_INTERVAL_S)
    for panel in panels(board):
        for target in panel["targets"]:
            yield panel["title"], expand(target["expr"], variables)


def empty_panels(source: Prometheus, window: Window, paper: str, auto: str) -> list[str]:
    """Panels of which a query returns nothing; the search is looked for in the run that has one."""
    empty = [
        f"Run / {title}: {expr}"
        for title, expr in queries(dashboard("run"), paper)
        if not source.ranged(expr, window) and not source.ranged(expr.replace(paper, auto), window)
    ]
    fleet = queries(dashboard("fleet"), paper)
    return empty + [f"Fleet / {title}: {expr}" for title, expr in fleet if not source.ranged(expr, window)]


def marked_events(source: Prometheus, window: Window, run: str) -> set[str]:
    """Names of the events that the Run dashboard marks."""
    variables = variables_for(run, SCRAPE_INTERVAL_S)
    marks = dashboard("run")["annotations"]["list"]
    return {one["name"] for one in marks if source.ranged(expand(one["expr"], variables), window)}


def wait_for(
    condition: Callable[[], bool], what: str, *, limit_s: float, between: Callable[[], None] | None = None
) -> None:
    """Ask until it holds; ``between`` is called after each time that it does not.

    Raises:
        TimeoutError: it does not hold within the limit.
    """
    ends_s = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > ends_s:
            raise TimeoutError(f"not within {limit_s:.0f} s: {what}")
        if between is not None:
            between()
        time.sleep(0.1)


def _is_ready(address: str) -> bool:
    try:
        return httpx.get(f"http://{address}/-/ready").status_code == 200
    except httpx.TransportError:
        return False


def free_port() -> int:
    """A TCP port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
