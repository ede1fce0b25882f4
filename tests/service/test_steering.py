"""Operators' changes: checked on the schedule as it stands, by who has seen it, stored before answered."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from hdet_ray.config import Fixed
from hdet_service.override_rows import end_pending
from hdet_service.problems import (
    Conflict,
    Invalid,
    NotFound,
    PreconditionFailed,
    PreconditionRequired,
    ServiceError,
)
from hdet_service.store.models import Audit, Event
from tests.service.simulated_run import JOB, OPERATOR, Network, Service, Worker

FIXED = Fixed(alpha=0.1, sync_every=20)


class Steered:
    """A run in its third round, and its operator."""

    def __init__(self, folder: Path, controller: Any = FIXED) -> None:
        self.service = Service(folder)
        self.worker = Worker(Network(self.service), folder, controller=controller)
        self.worker.train(2)

    def ask(self, if_match: str | None = '"0"', *, dry_run: bool = False, **body: Any) -> dict[str, Any]:
        given = {"hparam": "lr", "op": "scale", "value": 0.5, **body}
        call = self.service.runs.override(JOB, given, if_match=if_match, who=OPERATOR, dry_run=dry_run)
        return asyncio.run(call)[0]


@pytest.fixture
def steered(tmp_path: Path) -> Iterator[Steered]:
    made = Steered(tmp_path)
    yield made
    made.service.store.close()


@pytest.fixture
def searching(tmp_path: Path) -> Iterator[Steered]:
    from hdet_ray.config import Auto

    made = Steered(tmp_path, Auto(sync_every=20))
    assert made.worker.plan.is_search
    yield made
    made.service.store.close()


def test_a_change_without_if_match_is_asked_for_it(steered: Steered) -> None:
    with pytest.raises(PreconditionRequired, match="ETag"):
        steered.ask(None)


@pytest.mark.parametrize("stale", ['"1"', '"00"', 'W/"7"', "0", '""'])
def test_a_change_of_what_somebody_else_has_changed_is_refused(steered: Steered, stale: str) -> None:
    with pytest.raises(PreconditionFailed, match="revision 0"):
        steered.ask(stale)
    assert steered.service.schedule()["overrides"] == []


def test_of_fifty_who_saw_the_same_schedule_one_wins(steered: Steered) -> None:
    def attempt(_: int) -> int:
        try:
            steered.ask('"0"')
        except PreconditionFailed as error:
            return error.status
        return 202

    with ThreadPoolExecutor(10) as pool:
        statuses = sorted(pool.map(attempt, range(50)))
    assert statuses == [202, *[412] * 49]
    assert len(steered.service.schedule()["overrides"]) == 1


def test_application_and_expiry_do_not_change_the_revision(steered: Steered) -> None:
    steered.ask(expires_after_rounds=1)
    revision = steered.service.schedule()["revision"]
    steered.worker.train(4)
    assert steered.service.schedule()["revision"] == revision == 1


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ({"hparam": "dropout"}, "hparam", "it has lr"),
        ({"group": 7}, "group", "of group 7"),
        ({"op": "set", "value": 99.0}, "value", "outside its bounds"),
        ({"op": "scale", "value": -1.0}, "value", "above 0"),
        ({"op": "set", "value": float("nan")}, "value", "finite"),
        ({"expires_after_rounds": 0}, "value", "at least 1"),
    ],
)
def test_an_override_that_cannot_apply_is_refused_by_name_bound_and_remedy(
    steered: Steered, body: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(Invalid, match=words) as caught:
        steered.ask(**body)
    assert caught.value.errors[0]["field"] == field
    assert steered.service.job().revision == 0


def test_an_override_is_checked_against_the_bounds_that_are_on_their_way(steered: Steered) -> None:
    with pytest.raises(Invalid):
        steered.ask(op="set", value=50.0)
    steered.service.patch("lr", bounds=[1e-6, 100.0])
    assert steered.ask('"1"', op="set", value=50.0)["state"] == "pending"
    steered.worker.train(2)
    assert steered.worker.plan.peak[("lr", 0)] == 50.0


@pytest.mark.parametrize("state", ["SUCCEEDED", "FAILED", "CANCELED"])
def test_a_job_that_has_ended_takes_no_changes(steered: Steered, state: str) -> None:
    steered.service.change_job(lambda job: setattr(job, "state", state))
    with pytest.raises(Conflict, match=state):
        steered.ask()


def test_before_a_worker_has_opened_the_run_there_is_no_schedule_to_change(tmp_path: Path) -> None:
    service = Service(tmp_path)
    calls = [
        lambda: service.runs.override(
            JOB, {"hparam": "lr", "op": "set", "value": 1.0}, if_match="*", who=OPERATOR
        ),
        lambda: service.runs.patch_auto(JOB, "lr", frozen=True, if_match="*", who=OPERATOR),
        lambda: service.runs.schedule(JOB),
    ]
    for call in calls:
        with pytest.raises(Conflict, match="no worker has opened"):
            asyncio.run(call())  # type: ignore[arg-type]
    assert asyncio.run(service.runs.replicas(JOB)) == []
    page = asyncio.run(service.runs.history(JOB, limit=10))
    assert (page.start, page.lines, page.next_round) == (None, (), None)
    service.store.close()


def test_an_absent_job_or_override_is_not_found(steered: Steered) -> None:
    runs = steered.service.runs
    for call in (
        runs.schedule("nobody"),
        runs.history("nobody", limit=1),
        runs.override_get(JOB, "nothing"),
        runs.override_remove(JOB, "nothing", if_match=None, who=OPERATOR),
        runs.override("nobody", {"hparam": "lr", "op": "set", "value": 1.0}, if_match="*", who=OPERATOR),
    ):
        with pytest.raises(NotFound):
            asyncio.run(call)  # type: ignore[arg-type]


# ---- previews


def test_a_preview_says_what_would_change_and_stores_nothing(steered: Steered) -> None:
    told = steered.ask(None, dry_run=True)
    peak = steered.worker.plan.peak[("lr", 0)]
    assert told["applies_at_round"] == 3
    assert told["changes"][0] | {"base": None} == {
        "hparam": "lr",
        "group": 0,
        "from": peak,
        "to": peak * 0.5,
        "base": None,
    }
    assert [change["group"] for change in told["changes"]] == [0, 1]
    assert steered.service.job().revision == 0
    assert steered.service.schedule()["overrides"] == []


def test_a_preview_is_what_then_happens(steered: Steered) -> None:
    told = steered.ask(dry_run=True, op="set", value=2e-3, group=1)
    steered.ask(op="set", value=2e-3, group=1)
    steered.worker.train()
    (change,) = told["changes"]
    assert steered.worker.plan.peak[("lr", 1)] == change["to"] == 2e-3
    assert steered.worker.plan.base[("lr", 1)] == change["base"]["to"]


def test_a_set_during_the_search_ends_it_and_a_factor_waits_for_its_end(searching: Steered) -> None:
    ends = searching.ask(dry_run=True, op="set", value=2e-3)
    waits = searching.ask(dry_run=True, op="scale", value=0.5)
    assert (ends["ends_search"], ends["applies_at_round"]) == (True, 3)
    assert (waits["ends_search"], waits["applies_at_round"]) == (False, None)
    asked = searching.ask(op="scale", value=0.5)
    searching.worker.train(2)
    assert searching.service.override_of(asked["id"])["state"] == "pending"
    while searching.worker.plan.is_search:
        searching.worker.train()
    searching.worker.train(1)
    assert searching.service.override_of(asked["id"])["state"] == "applied"


# ---- taking back


def test_an_override_that_still_waits_is_taken_back_at_once(steered: Steered) -> None:
    asked = steered.ask()
    assert steered.service.remove(asked["id"])["state"] == "removed"
    steered.worker.train(2)
    assert steered.worker.state.overrides == ()


def test_one_in_force_ends_at_the_next_boundary(steered: Steered) -> None:
    asked = steered.ask()
    before = steered.worker.plan.peak
    steered.worker.train(2)
    assert steered.service.remove(asked["id"])["state"] == "applied"
    steered.worker.train()
    assert steered.worker.plan.peak == before
    steered.worker.train()
    assert steered.service.override_of(asked["id"])["state"] == "removed"


def test_taking_back_twice_is_taking_back_once(steered: Steered) -> None:
    asked = steered.ask()
    steered.worker.train(2)
    steered.service.remove(asked["id"])
    steered.service.remove(asked["id"])
    assert steered.service.job().revision == 2
    steered.worker.train(2)
    assert steered.service.remove(asked["id"])["state"] == "removed"
    assert steered.worker.state.notes == ()  # core was asked once


def test_one_that_is_over_cannot_be_taken_back(steered: Steered) -> None:
    asked = steered.ask(expires_after_rounds=1)
    steered.worker.train(4)
    assert steered.service.override_of(asked["id"])["state"] == "expired"
    with pytest.raises(Conflict, match="expired"):
        steered.service.remove(asked["id"])


def test_what_is_pending_when_the_job_ends_is_refused_with_the_reason(steered: Steered) -> None:
    asked = steered.ask(apply_at_round=30)
    steered.worker.train()
    steered.service.store.write_sync(lambda session: end_pending(session, JOB, "the job ended", 5.0))
    told = steered.service.override_of(asked["id"])
    assert (told["state"], told["refusal"]) == ("refused", "the job ended")


# ---- freezing and bounding


def test_a_freeze_holds_from_the_next_round_on(steered: Steered) -> None:
    told = steered.service.patch("lr", frozen=True)
    assert (told["frozen"], told["applies_at_round"]) == (True, 3)
    assert steered.service.schedule()["frozen"] == []
    steered.worker.train()
    assert steered.service.schedule()["frozen"] == ["lr"]
    steered.service.patch("lr", frozen=False)
    steered.worker.train()
    assert steered.service.schedule()["frozen"] == []


def test_new_bounds_clip_what_lies_outside(steered: Steered) -> None:
    steered.service.patch("lr", bounds=[1e-6, 2e-3])
    steered.worker.train()
    assert max(steered.worker.plan.peak.values()) == pytest.approx(2e-3)
    assert steered.service.schedule()["bounds"] == {"lr": [1e-6, 2e-3]}


@pytest.mark.parametrize(
    ("hparam", "change", "field"),
    [
        ("dropout", {"frozen": True}, "hparam"),
        ("dropout", {"bounds": [0.1, 0.2]}, "hparam"),
        ("lr", {"bounds": [0.0, 0.1]}, "bounds"),
        ("lr", {"bounds": [2.0, 1.0]}, "bounds"),
        ("lr", {"bounds": [1.0, 1.1]}, "bounds"),
    ],
)
def test_a_freeze_or_bound_that_cannot_work_is_refused(
    steered: Steered, hparam: str, change: dict[str, Any], field: str
) -> None:
    with pytest.raises(Invalid) as caught:
        steered.service.patch(hparam, **change)
    assert caught.value.errors[0]["field"] == field
    assert steered.service.job().revision == 0


def test_nothing_asked_for_is_refused(steered: Steered) -> None:
    with pytest.raises(ServiceError, match="nothing would change"):
        steered.service.patch("lr")


# ---- what is left behind


def test_every_change_leaves_who_what_and_why(steered: Steered) -> None:
    asked = steered.ask(reason="too hot")
    steered.service.patch("lr", frozen=True, reason="steady now")
    steered.service.remove(asked["id"])
    rows = steered.service.store.read_sync(lambda session: list(session.scalars(select(Audit))))
    assert [(row.actor, row.action, row.reason) for row in rows] == [
        ("ops", "override", "too hot"),
        ("ops", "patch_auto", "steady now"),
        ("ops", "remove_override", ""),
    ]
    assert rows[0].after is not None
    assert rows[0].after["value"] == 0.5


def test_an_overrides_stations_are_events_in_their_order(steered: Steered) -> None:
    asked = steered.ask(expires_after_rounds=1)
    steered.worker.train(4)
    events = steered.service.store.read_sync(
        lambda session: list(session.scalars(select(Event).where(Event.type == "override")))
    )
    assert [event.data["state"] for event in events] == ["pending", "applied", "expired"]
    assert {event.data["id"] for event in events} == {asked["id"]}


def test_the_schedule_shows_what_every_replica_does(steered: Steered) -> None:
    asked = steered.ask()
    steered.worker.train(2)
    shown, plan = steered.service.schedule(), steered.worker.plan
    assert (shown["phase"], shown["round"], shown["step"]) == ("fan_out", 4, 80)
    assert shown["base"]["lr"] == {"0": plan.base[("lr", 0)], "1": plan.base[("lr", 1)]}
    values = [replica["values"]["lr"]["0"] for replica in shown["replicas"]]
    assert values == [plan.base[("lr", 0)] * plan.values[("lr", 0)][r] for r in range(2)]
    assert [override["id"] for override in shown["overrides"]] == [asked["id"]]
    assert shown["one_cycle"]["lr"]["0"] == pytest.approx(2 * plan.base[("lr", 0)])
    json.dumps(shown, allow_nan=False)


def test_a_candidate_without_a_finite_loss_says_so(searching: Steered) -> None:
    from dataclasses import replace

    from tests.unit.runs import make_replica, make_report

    plan = searching.worker.plan
    report = make_report(plan, [make_replica(float("nan"), probe_loss=float("nan"), is_finite=False)] * 2)
    healthy = make_replica(1.0, probe_loss=1.0)
    report = replace(report, replicas=(healthy, report.replicas[1]))
    worker = searching.worker
    worker.state, worker.plan = worker.control.exchange(worker.state, report)
    points = searching.service.schedule()["points"]
    assert [(p["loss"], p.get("nonfinite")) for p in points if p["round"] == 2] == [(1.0, None), (None, True)]


def test_history_pages_hold_every_line_once(steered: Steered) -> None:
    steered.worker.train(5)
    lines: list[str] = []
    start: int | None = 0
    while start is not None:
        page = asyncio.run(steered.service.runs.history(JOB, from_round=start, limit=3))
        lines += page.lines
        start = page.next_round
    assert lines == steered.service.ledger()[1:]
    assert len(lines) == 7
