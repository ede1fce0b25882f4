"""Renders the chart with the real helm, as `helm template` does for a user without a cluster."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm/hdet-ray"
BIN = ROOT / ".tools/bin"
GOLDEN = Path(__file__).resolve().parent / "golden"
CI_VALUES = sorted((CHART / "ci").glob("*-values.yaml"))

RELEASE = "run"
NAMESPACE = "training"


class RefusedError(Exception):
    """helm rendered nothing; the message is its own."""


def render_text(values: Mapping[str, Any] | Path, *, chart: Path = CHART) -> str:
    """The manifest as text.

    Raises:
        RefusedError: the values break the schema or contradict each other.
    """
    source = str(values) if isinstance(values, Path) else "-"
    given = None if isinstance(values, Path) else json.dumps(values, ensure_ascii=False)
    command = [str(BIN / "helm"), "template", RELEASE, str(chart), "--namespace", NAMESPACE, "-f", source]
    done = subprocess.run(
        command, input=given, capture_output=True, text=True, check=False, env=quiet_environment()
    )
    if done.returncode != 0:
        raise RefusedError(done.stderr)
    return done.stdout


def render(values: Mapping[str, Any] | Path, *, chart: Path = CHART) -> list[dict[str, Any]]:
    """The manifest's objects.

    Raises:
        RefusedError: the values break the schema or contradict each other.
    """
    return parse(render_text(values, chart=chart))


def parse(manifest: str) -> list[dict[str, Any]]:
    """The objects of a manifest."""
    return [item for item in yaml.load_all(manifest, Loader=yaml.CSafeLoader) if item is not None]


def of_kind(objects: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The objects of one kind, in the order of the manifest."""
    return [item for item in objects if item["kind"] == kind]


def only(objects: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """The one object of a kind."""
    [found] = of_kind(objects, kind)
    return found


def quiet_environment() -> dict[str, str]:
    """An environment in which the tools find no settings of this machine's user."""
    return {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "KUBECONFIG": "/nonexistent"}
