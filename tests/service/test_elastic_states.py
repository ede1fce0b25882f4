"""States of a job whose replicas come and go: each says why, with numbers; each is left by itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from hdet_service.metrics import REPLICA_FAILURES, SYNC_FAILURES, SyncFailure, one
from hdet_service.metrics.counts import Counts
from hdet_service.store.models import Counter
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


def counted(driven: Driven, job_id: str, one: Counts) -> float:
    """What a counter of the job has come to."""
    (name,) = one
    query = select(Counter.value).where(Counter.job_id == job_id, Counter.name == name)
    return driven.controller.store.read_sync(lambda session: session.scalar(query)) or 0.0


def test_a_lost_replica_degrades_until_all_are_back(driven: Driven) -> None:
    job_id = submit_three(driven)
    tell(driven, job_id, "lost", message="1 of the workers failed", ranks=[2])
    assert driven.state(job_id) == ("DEGRADED", "ReplicaLost")
    assert driven.job(job_id).replicas_present == 0
    driven.open(job_id, attempt=2, num_replicas=2)
    assert driven.state(job_id) == ("DEGRADED", "ReplicaLost")
    assert driven.job(job_id).message.startswith("2 of 3 replicas train.")
    transitions = driven.transitions(job_id)
    driven.run(driven.controller.hearing.reported({"job": job_id, "attempt": 2}))
    assert driven.transitions(job_id) == transitions, "its first report says nothing new"
    assert driven.job(job_id).replicas_present == 2
    tell(driven, job_id, "resizing", workers=3)
    assert driven.state(job_id) == ("DEGRADED", "Resizing")
    assert "3 replicas" in driven.job(job_id).message
    driven.open(job_id, attempt=3, num_replicas=3)
    assert driven.state(job_id) == ("RUNNING", "Running")


def test_replicas_are_shown_only_together_with_the_message_that_counts_them(
    driven: Driven, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = submit_three(driven)
    assert driven.job(job_id).replicas_present == 3
    tell(driven, job_id, "lost", message="1 of the workers failed", ranks=[2])
    hearing = driven.controller.hearing
    opened, between = hearing.opened, []

    async def look_first(request: Any) -> None:
        job = await driven.controller.jobs.get(job_id)
        between.append((job.replicas_present, job.message.startswith("1 of the workers failed")))
        await opened(request)

    monkeypatch.setattr(hearing, "opened", look_first)
    driven.open(job_id, attempt=2, num_replicas=2)
    assert between == [(0, True)], "the run is open, the job's state does not know it yet"
    assert driven.job(job_id).replicas_present == 2


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


def test_a_wait_whose_free_room_changes_has_newer_words_and_no_more_transitions(driven: Driven) -> None:
    job_id = driven.submit(**ELASTIC)
    driven.tick()
    driven.note(job_id, "started")
    for free in (1.0, 0.0, 1.0, 0.5):
        tell(driven, job_id, "waiting", **{**ROOM, "free": {"CPU": free}})
    assert driven.transitions(job_id) == ["QUEUED", "STARTING", "STARTING", "STARTING"]
    assert len(driven.events(job_id, "state")) == 4
    assert "Free in the cluster: 0.5 of 2 CPU" in driven.job(job_id).message


def test_a_loss_that_is_told_twice_counts_once(driven: Driven) -> None:
    job_id = submit_three(driven)
    tell(driven, job_id, "lost", message="1 of the workers failed", ranks=[2])
    lost_s = driven.now_s
    driven.open(job_id, attempt=2, num_replicas=3)
    driven.note(job_id, "lost", at_s=lost_s, message="1 of the workers failed", ranks=[2])
    assert driven.state(job_id) == ("RUNNING", "Running")
    assert driven.job(job_id).failures == 1
    assert counted(driven, job_id, one(REPLICA_FAILURES, "ReplicaLost")) == 1
    assert counted(driven, job_id, one(SYNC_FAILURES, SyncFailure.INTERRUPTED)) == 1
    tell(driven, job_id, "lost", message="1 of the workers failed", ranks=[2])
    assert driven.job(job_id).failures == 2


def test_a_loss_before_the_group_trains_is_one_and_counts(driven: Driven) -> None:
    job_id = driven.submit(**ELASTIC)
    driven.tick()
    driven.note(job_id, "started")
    tell(driven, job_id, "lost", message="1 of the workers failed", ranks=[2])
    assert driven.state(job_id) == ("STARTING", "ReplicaLost")
    assert counted(driven, job_id, one(REPLICA_FAILURES, "ReplicaLost")) == 1
    driven.tick()
    assert len(driven.starter.launches) == 1


def test_a_loss_that_is_old_news_counts_too(driven: Driven) -> None:
    job_id = submit_three(driven)
    driven.now_s += 10
    driven.open(job_id, attempt=2, num_replicas=3)
    driven.note(job_id, "lost", message="1 of the workers failed", at_s=driven.now_s - 5)
    assert driven.state(job_id) == ("RUNNING", "Running")
    assert counted(driven, job_id, one(REPLICA_FAILURES, "ReplicaLost")) == 1


@pytest.mark.parametrize("is_late", [False, True])
def test_the_loss_of_a_node_that_gave_notice_is_no_failure(driven: Driven, is_late: bool) -> None:
    job_id = submit_three(driven)
    lost = {"message": "1 of the workers failed", "ranks": [2], "is_preemption": True, "at_s": driven.now_s}
    driven.now_s += 1
    if is_late:
        driven.open(job_id, attempt=2, num_replicas=3)
    driven.note(job_id, "lost", **lost)
    assert driven.state(job_id) == (("RUNNING", "Running") if is_late else ("DEGRADED", "Preempted"))
    assert driven.job(job_id).failures == 0
    assert counted(driven, job_id, one(REPLICA_FAILURES, "Preempted")) == 1


def test_a_wait_that_is_over_when_it_is_heard_of_changes_nothing(driven: Driven) -> None:
    job_id = submit_three(driven)
    driven.note(job_id, "waiting", at_s=driven.now_s - 5, **ROOM)
    assert driven.state(job_id) == ("RUNNING", "Running")


def test_a_report_of_the_group_that_is_gone_does_not_end_a_wait(driven: Driven) -> None:
    job_id = submit_three(driven)
    tell(driven, job_id, "waiting", **ROOM)
    driven.run(driven.controller.hearing.reported({"job": job_id, "attempt": 1}))
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
