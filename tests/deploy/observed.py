"""What rules and dashboards name: metrics, labels, expressions. Read off the committed files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "deploy/prometheus/rules.yaml"
DASHBOARDS = ROOT / "deploy/grafana/dashboards"

_METRIC = re.compile(r"(?<![\w:])hdet_\w+")
_SELECTOR = re.compile(r"(?<![\w:])(hdet_\w+)\s*\{([^}]*)\}")
_LABEL = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
_SUFFIX = re.compile(r"_(?:bucket|sum|count)$")


def tool(name: str) -> str:
    """Path of a fetched tool.

    Raises:
        FileNotFoundError: it was not fetched.
    """
    path = ROOT / ".tools/bin" / name
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; run `make tools`")
    return str(path)


def dashboard(name: str) -> dict[str, Any]:
    """A committed dashboard."""
    data: dict[str, Any] = json.loads((DASHBOARDS / f"{name}.json").read_text(encoding="utf-8"))
    return data


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    """Panels of a dashboard that ask something."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def rules() -> list[dict[str, Any]]:
    """The shipped rules."""
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expressions() -> Iterator[tuple[str, str]]:
    """Every expression that is shipped, with where it stands."""
    for rule in rules():
        yield f"rule {rule.get('alert') or rule['record']}", rule["expr"]
    for name in ("fleet", "run"):
        board = dashboard(name)
        for panel in panels(board):
            for target in panel["targets"]:
                yield f"panel {board['title']} / {panel['title']}", target["expr"]
        for event in board["annotations"]["list"]:
            yield f"event {board['title']} / {event['name']}", event["expr"]
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                yield f"variable {variable['name']}", variable["query"]


def metrics_in(expr: str) -> set[str]:
    """Families of ours that an expression reads."""
    return {_SUFFIX.sub("", name) for name in _METRIC.findall(expr)}


def matched_labels(expr: str) -> Iterator[tuple[str, str]]:
    """Metric and label of each matcher."""
    for metric, matchers in _SELECTOR.findall(expr):
        for label in _LABEL.findall(re.sub(r'"[^"]*"', '""', matchers)):
            yield _SUFFIX.sub("", metric), label
