"""Writes what the chart renders now to ``golden/VERSION/``, one file per set of values.

    python -m tests.deploy.regenerate_golden

Run once for each release, when it is made: later charts are compared with every release that people may
upgrade from.
"""

from __future__ import annotations

from typing import Any

import yaml

from tests.deploy.rendering import CHART, CI_VALUES, GOLDEN, render


def main() -> None:
    """Write the files of the chart's own version."""
    version = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))["version"]
    folder = GOLDEN / version
    folder.mkdir(parents=True, exist_ok=True)
    for values in CI_VALUES:
        # Values are stored with it: those of a release stay what its users have set.
        (folder / values.name).write_text(values.read_text(encoding="utf-8"), encoding="utf-8")
        name = values.name.replace("-values", "-manifest")
        objects = [_identity(item) for item in render(values)]
        (folder / name).write_text(yaml.safe_dump_all(objects, sort_keys=False), encoding="utf-8")


def _identity(item: dict[str, Any]) -> dict[str, Any]:
    """An object without what any release may change: rules and dashboards are most of a manifest."""
    free = {"ConfigMap": "data", "PrometheusRule": "spec"}.get(item["kind"])
    return {key: value for key, value in item.items() if key != free}


if __name__ == "__main__":
    main()
