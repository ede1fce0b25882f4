"""The chart's values are written down once: comment, schema and README agree."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from deploy.tools.chart_readme import CHART, README, documented, readme
from tests.deploy.value_sets import SCHEMA

LINES = (CHART / "values.yaml").read_text(encoding="utf-8")


def test_the_readme_is_what_the_comments_say() -> None:
    assert README.read_text(encoding="utf-8") == readme(LINES), "run `python -m deploy.tools.chart_readme`"


def test_every_value_has_a_comment_that_says_what_it_does() -> None:
    commented = [value.path for value in documented(LINES)]
    # A map of free keys is one value: what it may hold by default needs no comment of its own.
    leaves = [
        path
        for path in _leaves(yaml.safe_load(LINES))
        if path != "metrics.dashboards.labels.grafana_dashboard"
    ]
    assert sorted([*leaves, "metrics.dashboards.labels"]) == sorted(commented)


def test_the_schema_knows_the_values_and_no_others() -> None:
    known = set(_properties(SCHEMA))
    assert known == {value.path for value in documented(LINES)}


def _leaves(values: dict[str, Any], above: str = "") -> Iterator[str]:
    for key, value in values.items():
        path = f"{above}{key}"
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{path}.")
        else:
            yield path


def _properties(schema: dict[str, Any], above: str = "") -> Iterator[str]:
    for key, inside in schema["properties"].items():
        path = f"{above}{key}"
        if "properties" in inside:
            yield from _properties(inside, f"{path}.")
        else:
            yield path
