"""Writes the rules as YAML: ``python -m deploy.prometheus.rules --time-scale 1 -o rules.yaml``.

Without ``-o`` the shipped files are written, the one for Compose and the chart's copy of it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # it carries no types

from deploy.prometheus.alerts import AlertingRule, RecordingRule, alerting_rules, recording_rules
from deploy.prometheus.time_scale import TimeScale

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = (ROOT / "deploy/prometheus/rules.yaml", ROOT / "helm/hdet-ray/files/rules.yaml")
RUNBOOK = "docs/operations.md"
EVALUATED_EVERY_S = 15.0
EVALUATED_AT_MOST_EVERY_S = 1.0
"""Also under a small time scale, in real seconds."""

_HEADER = "# Made by `python -m deploy.prometheus.rules`; a test holds it to deploy/prometheus/alerts.py.\n"


def rules(scale: TimeScale) -> dict[str, Any]:
    """The rule file as data. One group: its rules run in order, so alerts see what was just recorded."""
    recorded = [_recording(rule) for rule in recording_rules()]
    alerts = [_alerting(rule, scale) for rule in alerting_rules(scale)]
    interval = scale.span(max(EVALUATED_EVERY_S, EVALUATED_AT_MOST_EVERY_S / scale.factor))
    return {"groups": [{"name": "hdet", "interval": interval, "rules": recorded + alerts}]}


def rules_yaml(scale: TimeScale) -> str:
    """The rule file as text."""
    body: str = yaml.dump(rules(scale), Dumper=_Dumper, sort_keys=False, width=1000, allow_unicode=True)
    return _HEADER + body


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of the command line."""
    parser = argparse.ArgumentParser(prog="python -m deploy.prometheus.rules", description=__doc__)
    parser.add_argument(
        "--time-scale", type=float, default=1.0, help="factor on every duration, above 0 and at most 1"
    )
    parser.add_argument("-o", "--output", type=Path, help="where to write; the shipped files if left out")
    chosen = parser.parse_args(arguments)
    try:
        scale = TimeScale(chosen.time_scale)
    except ValueError as error:
        parser.error(str(error))
    if chosen.output is None and scale != TimeScale():
        parser.error(f"--time-scale {scale.factor} would shrink the shipped rules; say where with -o")
    for path in SHIPPED if chosen.output is None else (chosen.output,):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(rules_yaml(scale), encoding="utf-8")


def _recording(rule: RecordingRule) -> dict[str, Any]:
    return {"record": rule.record, "expr": rule.expr}


def _alerting(rule: AlertingRule, scale: TimeScale) -> dict[str, Any]:
    made: dict[str, Any] = {"alert": rule.alert, "expr": rule.expr}
    if rule.wait_s:
        made["for"] = scale.span(rule.wait_s)
    made["labels"] = {"severity": rule.severity}
    made["annotations"] = {
        "summary": rule.summary,
        "description": rule.description,
        "runbook_url": f"{RUNBOOK}#{rule.anchor}",
    }
    return made


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Writes an expression of several lines as a block, as a person would."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)

if __name__ == "__main__":
    main()
