"""Rules and dashboards read what the service exports, and all of it."""

from __future__ import annotations

import pytest

from deploy.unwatched import UNWATCHED
from hdet_service.metrics import METRICS
from tests.deploy.observed import expressions, matched_labels, metrics_in

EXPORTED = {metric.name: metric for metric in METRICS}
SCRAPED_LABELS = {"namespace"}
"""Put on by the scrape, not by the service."""
EXPRESSIONS = list(expressions())

each_expression = pytest.mark.parametrize(
    ("where", "expr"), EXPRESSIONS, ids=[where for where, _ in EXPRESSIONS]
)


@each_expression
def test_only_exported_metrics_are_read(where: str, expr: str) -> None:
    assert metrics_in(expr) <= EXPORTED.keys()


@each_expression
def test_only_labels_that_a_metric_has_are_matched(where: str, expr: str) -> None:
    for metric, label in matched_labels(expr):
        assert label in SCRAPED_LABELS | {*EXPORTED[metric].labels}, f"{metric} has no label {label}"


@pytest.mark.parametrize("name", list(EXPORTED))
def test_every_exported_metric_is_watched_or_has_a_reason(name: str) -> None:
    is_watched = any(name in metrics_in(expr) for _, expr in EXPRESSIONS)
    assert is_watched or UNWATCHED.get(name, "").strip(), f"{name}: give it a panel, a rule or a reason"


def test_no_reason_is_left_for_what_is_watched_or_gone() -> None:
    watched = {name for _, expr in EXPRESSIONS for name in metrics_in(expr)}
    assert not UNWATCHED.keys() & watched
    assert EXPORTED.keys() >= UNWATCHED.keys()
