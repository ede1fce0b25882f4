"""A notice of preemption asks for a checkpoint at the next boundary, and at each one until the node goes."""

from __future__ import annotations

import logging

import pytest

pytest.importorskip("ray")

from ray.train.v2.api.preemption import PreemptionInfo

from hdet_ray.train.preemption import PreemptionNotice


def notice(*nodes: str) -> PreemptionInfo:
    return PreemptionInfo(deadline_ms=1_000, preempted_node_to_ranks={node: [0] for node in nodes})


def test_without_a_notice_nothing_is_asked_for() -> None:
    assert PreemptionNotice(lambda: None).directive() is None


def test_from_a_notice_on_every_boundary_is_saved_and_each_notice_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    notices = [None, notice("a"), notice("a"), notice("a", "b"), notice("a", "b")]
    told = PreemptionNotice(lambda: notices.pop(0))
    with caplog.at_level(logging.WARNING):
        asked = [told.directive() for _ in range(5)]
    assert asked == [None, "checkpoint", "checkpoint", "checkpoint", "checkpoint"]
    assert len(caplog.records) == 2
