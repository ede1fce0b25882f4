"""States of a job whose replicas come and go: each says why, with numbers; each is left by itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.service.driven import Driven

ELASTIC = {"replicas": {"min": 2, "max": 3}}
ROOM: dict[str, Any] = {
    "min_workers": 2,
    "per_worker": {"CPU": 1.0},
    "free": {"CPU": 1.0},
    "total": {"CPU": 2.0},
}


@pytest.fixture
def driven(tmp_path: Path) -> Iterator[Driven]:
    with Driven(tmp_path) as running:
        yield running


def submit_three(driven: Driven) -> str:
    """A job that trains with all its replicas."""
    job_id = driven.submit(**ELASTIC)
    driven.tick()
    driven.note(job_id, "imported")
    driven.open(job_id, num_replicas=3)
    assert driven.state(job_id) == ("RUNNING", "Running")
    return job_id


def tell(driven: Driven, job_id: str, kind: str, **data: Any) -> None:
    driven.now_s += 1
    driven.note(job_id, kind, at_s=driven.now_s, **data)


def test_a_lost_replica_degrades_until_all_are_back(driven: Driven) -> None:
    job_id = submit_three(driven)
    tell(driven, job_id, "lost", message="1 of the workers failed", ranks=[2])
    assert driven.state(job_id) == ("DEGRADED", "ReplicaLost")
    assert driven.job(job_id).replicas_present == 0
    driven.open(job_id, attempt=2, num_replicas=2)
    assert driven.state(job_id) == ("DEGRADED", "ReplicaLost")
    assert driven.job(job_id).message.startswith("2 of 3 replicas train.")
    transitions = driven.transitions(job_id)
    driven.run(driven.controller.supervision.reported({"job": job_id, "attempt": 2}))
    assert driven.transitions(job_id) == transitions, "its first report says nothing new"
    assert driven.job(job_id).replicas_present == 2
    tell(driven, job_id, "resizing", workers=3)
    assert driven.state(job_id) == ("DEGRADED", "Resizing")
    assert "3 replicas" in driven.job(job_id).message
    driven.open(job_id, attempt=3, num_replicas=3)
    assert driven.state(job_id) == ("RUNNING", "Running")


def test_below_its_minimum_a_job_waits_and_says_for_what(driven: Driven) -> None:
    job_id = submit_three(driven)
    tell(driven, job_id, "lost", message="2 of the workers failed", ranks=[1, 2])
    tell(driven, job_id, "waiting", **ROOM)
    assert driven.state(job_id) == ("STARTING", "WaitingForResources")
    assert driven.job(job_id).message == (
        "It needs at least 2 workers with 1 CPU each. Free in the cluster: 1 of 2 CPU; it starts by itself "
        "once there is room."
    )
    driven.open(job_id, attempt=2, num_replicas=2)
    assert driven.state(job_id) == ("DEGRADED", "Resizing")


def test_a_wait_that_is_told_twice_is_one_transition(driven: Driven) -> None:
    job_id = driven.submit(**ELASTIC)
    driven.tick()
    driven.note(job_id, "started")
    for _ in range(3):
        tell(driven, job_id, "waiting", **ROOM)
    assert driven.transitions(job_id) == ["QUEUED", "STARTING", "STARTING", "STARTING"]


def test_a_wait_that_is_over_when_it_is_heard_of_changes_nothing(driven: Driven) -> None:
    job_id = submit_three(driven)
    driven.note(job_id, "waiting", at_s=driven.now_s - 5, **ROOM)
    assert driven.state(job_id) == ("RUNNING", "Running")


def test_a_report_of_the_group_that_is_gone_does_not_end_a_wait(driven: Driven) -> None:
    job_id = submit_three(driven)
    tell(driven, job_id, "waiting", **ROOM)
    driven.run(driven.controller.supervision.reported({"job": job_id, "attempt": 1}))
    assert driven.state(job_id) == ("STARTING", "WaitingForResources")


def test_a_preemption_notice_is_the_reason_until_all_are_back(driven: Driven) -> None:
    job_id = submit_three(driven)
    tell(driven, job_id, "preempted", ranks=[2])
    assert driven.state(job_id) == ("DEGRADED", "Preempted")
    assert driven.job(job_id).replicas_present == 3, "they train on until the node goes"
    tell(driven, job_id, "lost", message="1 of the workers failed", ranks=[2])
    assert driven.state(job_id) == ("DEGRADED", "Preempted")
    driven.open(job_id, attempt=2, num_replicas=2)
    assert driven.state(job_id) == ("DEGRADED", "Preempted")
    driven.open(job_id, attempt=3, num_replicas=3)
    assert driven.state(job_id) == ("RUNNING", "Running")


def test_groups_of_ranks_are_counted_as_replicas(driven: Driven) -> None:
    job_id = driven.submit(replicas={"min": 1, "max": 2, "ranks_per_replica": 2})
    driven.tick()
    driven.open(job_id, num_replicas=1)
    assert driven.job(job_id).message.startswith("1 of 2 replicas train.")
    tell(driven, job_id, "resizing", workers=4)
    assert "2 replicas" in driven.job(job_id).message
