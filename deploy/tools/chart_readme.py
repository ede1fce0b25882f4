"""Writes the chart's README: its values from their `# --` comments in values.yaml.

    python -m deploy.tools.chart_readme

What a value means is said once, beside it. A test holds the README to what this would write.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).resolve().parents[2] / "helm/hdet-ray"
README = CHART / "README.md"

_KEY = re.compile(r"^(?P<indent> *)(?P<key>[A-Za-z][A-Za-z0-9]*):")
_COMMENT = re.compile(r"^ *# -- (?P<text>.+)$")

_HEAD = """\
# hdet-ray

HDET's controller service on a Ray cluster that [KubeRay](https://github.com/ray-project/kuberay) runs: a
head with the controller, worker groups that scale, claims for state and checkpoints, network policy, and
(where asked for) Ingress, monitors, rules and dashboards.

    helm install hdet helm/hdet-ray --namespace training --create-namespace \\
      --set image.repository=registry.example.com/hdet-ray

KubeRay's operator must run in the cluster; the chart was checked against the definitions of 1.7. The image
is built from `deploy/Dockerfile`. Installing, GPUs, spot nodes, upgrades and sizing:
[docs/kubernetes.md](../../docs/kubernetes.md). Who can do what: [docs/security.md](../../docs/security.md).
`ci/` holds sets of values that the checks render: minimal, GPU, spot, production, with everything brought
along, and for a Prometheus without operator.

An unknown key is refused with its name, and values that contradict each other with the remedy, before
anything is installed.

## Values

This page is made by `python -m deploy.tools.chart_readme` from the comments in `values.yaml`.

| Value | Default | What it does |
|---|---|---|
"""


@dataclass(frozen=True, slots=True)
class Value:
    """One documented value."""

    path: str
    default: Any
    text: str


def documented(lines: str) -> Iterator[Value]:
    """The values of a values.yaml that have a `# --` comment, in their order."""
    defaults = yaml.safe_load(lines)
    above: list[tuple[int, str]] = []
    text = None
    for line in lines.splitlines():
        if (comment := _COMMENT.match(line)) is not None:
            text = comment["text"]
            continue
        if (found := _KEY.match(line)) is None:
            continue
        indent = len(found["indent"])
        above = [(depth, key) for depth, key in above if depth < indent]
        above.append((indent, found["key"]))
        if text is not None:
            path = [key for _, key in above]
            yield Value(".".join(path), _at(defaults, path), text)
            text = None


def readme(lines: str) -> str:
    """The README's text for a values.yaml."""
    rows = [
        f"| `{value.path}` | `{json.dumps(value.default)}` | {value.text} |" for value in documented(lines)
    ]
    return _HEAD + "\n".join(rows) + "\n"


def _at(values: Any, path: list[str]) -> Any:
    for key in path:
        values = values[key]
    return values


def main() -> None:
    """Write the README."""
    README.write_text(readme((CHART / "values.yaml").read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
