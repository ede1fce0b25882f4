"""A notice of preemption asks for one checkpoint at the next boundary."""

from __future__ import annotations

import pytest

pytest.importorskip("ray")

from ray.train.v2.api.preemption import PreemptionInfo

from hdet_ray.train.preemption import PreemptionNotice


def notice(*nodes: str) -> PreemptionInfo:
    return PreemptionInfo(deadline_ms=1_000, preempted_node_to_ranks={node: [0] for node in nodes})


def test_without_a_notice_nothing_is_asked_for() -> None:
    assert PreemptionNotice(lambda: None).directive() is None


def test_each_notice_is_answered_once() -> None:
    notices = [notice("a"), notice("a"), notice("a", "b"), notice("a", "b")]
    told = PreemptionNotice(lambda: notices.pop(0))
    assert [told.directive() for _ in range(4)] == ["checkpoint", None, "checkpoint", None]
