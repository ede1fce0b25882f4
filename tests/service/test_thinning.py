"""History is bounded: old rounds become summaries, said so, and what is left replays bit for bit."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from hdet_ray.config import Auto, Fixed
from hdet_ray.core.replay import read_ledger, replay
from hdet_ray.core.state import state_to_json
from hdet_service.packages import package_path
from hdet_service.store import thinning
from hdet_service.store.database import Store
from hdet_service.store.housekeeping import Housekeeping, Tidied
from hdet_service.store.models import Audit, Event, Idempotency, Job, LedgerStart, Package, Round
from hdet_service.store.thinning import Prepared, Refusal, prepare, read_slice, summary_of, thin
from hdet_service.views import Views
from tests.service.store_rows import count, make_job
from tests.unit.synthetic_ledger import ledger_lines

JOB = "01J0000000000000000000000A"
LINES = ledger_lines(controller=Fixed(sync_every=4), total_steps=900)
"""225 rounds."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "hdet.db", clock=lambda: 5000.0) as opened:
        yield opened


def store_run(session: Session, lines: list[str], job_id: str = JOB) -> None:
    """A job that has reported all these rounds."""
    session.add(make_job(job_id, round=len(lines) - 1, attempt=1))
    session.add(LedgerStart(job_id=job_id, round=0, header=json.loads(lines[0])))
    for round, line in enumerate(lines[1:]):
        session.add(Round(job_id=job_id, attempt=1, round=round, item=line, at_s=1000.0 + round))
        for type in ("round", "checkpoint"):
            session.add(Event(job_id=job_id, type=type, data={"round": round}, at_s=1000.0 + round))


def tidy(store: Store, keep: int = 100, **settings: Any) -> Tidied:
    return asyncio.run(Housekeeping(store, keep_rounds=keep, pause_s=0, **settings).tidy())


def chain(store: Store, job_id: str = JOB) -> list[Round]:
    query = select(Round).where(Round.job_id == job_id, Round.is_abandoned.is_(False)).order_by(Round.round)
    return store.read_sync(lambda session: list(session.scalars(query)))


def start_of(store: Store) -> LedgerStart:
    return store.read_sync(lambda session: session.get_one(LedgerStart, JOB))


def events(store: Store, type: str) -> list[dict[str, Any]]:
    query = select(Event.data).where(Event.type == type).order_by(Event.id)
    return store.read_sync(lambda session: list(session.scalars(query)))


def replayed(store: Store) -> tuple[Any, Any]:
    """State that the whole rounds lead to from where the ledger starts, and where they depart."""
    start = start_of(store)
    lines = [row.item for row in chain(store) if row.round >= start.round]
    outcome = replay(read_ledger([json.dumps(start.header), *lines]))
    return outcome.state, outcome.departure


@pytest.mark.parametrize("controller", [Fixed(sync_every=4), Auto(sync_every=4, alpha=0.1)])
def test_what_is_left_replays_to_the_same_state_bit_for_bit(store: Store, controller: Fixed | Auto) -> None:
    lines = ledger_lines(controller=controller, total_steps=900)
    whole = replay(read_ledger(lines))
    store.write_sync(lambda session: store_run(session, lines))
    assert tidy(store).num_thinned == len(lines) - 1 - 100
    assert start_of(store).round == len(lines) - 1 - 100
    assert replayed(store) == (whole.state, None)


def test_the_newest_rounds_stay_as_they_were_and_every_older_one_has_a_summary(store: Store) -> None:
    store.write_sync(lambda session: store_run(session, LINES))
    tidy(store)
    rows = chain(store)
    assert [row.round for row in rows] == list(range(225))
    assert [row.is_thinned for row in rows] == [True] * 125 + [False] * 100
    assert [row.item for row in rows[125:]] == LINES[126:]
    for row in rows[:125]:
        assert row.item == summary_of(LINES[row.round + 1])
        assert len(row.item) < len(LINES[row.round + 1]) / 2


def test_the_api_begins_at_the_first_whole_round_and_shows_summaries_where_asked(store: Store) -> None:
    store.write_sync(lambda session: store_run(session, LINES))
    tidy(store)
    views = Views(store)
    page = asyncio.run(views.history(JOB, limit=500))
    outcome = replay(read_ledger([json.dumps(page.start), *page.lines]))
    assert (outcome.rounds, outcome.departure, outcome.state) == (
        100,
        None,
        replay(read_ledger(LINES)).state,
    )
    older = asyncio.run(views.history(JOB, from_round=0, limit=50))
    assert [json.loads(line)["thinned"] for line in older.lines] == [True] * 50
    assert older.next_round == 50


def test_a_summary_tells_loss_base_and_what_operators_asked_for() -> None:
    line = json.loads(LINES[5])
    line["report"]["commands"] = [{"kind": "override", "id": "o"}]
    line["report"]["replicas"][0]["loss"] = None  # not a number
    summary = json.loads(summary_of(json.dumps(line)))
    losses = [replica["loss"] for replica in line["report"]["replicas"][1:]]
    assert summary["thinned"] is True
    assert (summary["attempt"], summary["round"], summary["report_digest"]) == (1, 4, line["report_digest"])
    assert summary["report"]["commands"] == line["report"]["commands"]
    assert summary["report"]["num_replicas"] == 4
    assert summary["report"]["loss"] == pytest.approx(sum(losses) / 3)
    assert summary["plan"]["base"] == line["plan"]["base"]
    assert "values" not in summary["plan"]


def test_thinning_is_said_once_a_pass_and_events_of_rounds_go_with_them(store: Store) -> None:
    store.write_sync(lambda session: store_run(session, LINES))
    tidy(store)
    assert events(store, "ledger") == [{"thinned": True, "from_round": 0, "starts_at_round": 125}]
    for type in ("round", "checkpoint"):
        assert [data["round"] for data in events(store, type)] == list(range(125, 225))


def test_a_pass_begins_a_tenth_above_what_is_kept(store: Store) -> None:
    store.write_sync(lambda session: store_run(session, LINES[: 1 + 109]))
    assert tidy(store).num_thinned == 0
    store.write_sync(lambda session: session.execute(update(Job).values(round=110)))
    store.write_sync(
        lambda session: session.add(Round(job_id=JOB, attempt=1, round=109, item=LINES[110], at_s=0.0))
    )
    assert tidy(store).num_thinned == 10


def test_a_second_pass_goes_on_from_the_first(store: Store) -> None:
    store.write_sync(lambda session: store_run(session, LINES))
    tidy(store, keep=150)
    tidy(store, keep=20)
    assert start_of(store).round == 205
    assert replayed(store) == (replay(read_ledger(LINES)).state, None)
    assert tidy(store, keep=20).num_thinned == 0


def test_a_ledger_that_does_not_replay_stays_whole_and_it_is_said_once(store: Store) -> None:
    broken = list(LINES)
    item = json.loads(broken[71])
    item["plan"]["step"] += 1
    broken[71] = json.dumps(item)
    store.write_sync(lambda session: store_run(session, broken))
    keeping = Housekeeping(store, keep_rounds=100, pause_s=0)
    refusals = asyncio.run(keeping.tidy()).refusals
    assert [(refusal.round, "plan.step" in refusal.message) for refusal in refusals] == [(70, True)]
    asyncio.run(keeping.tidy())
    assert start_of(store).round == 64  # the slice before was fine
    assert [row.item for row in chain(store)[64:]] == broken[65:]
    assert [(data["thinned"], data.get("round")) for data in events(store, "ledger")] == [
        (True, None),
        (False, 70),
    ]


def test_a_missing_round_is_a_refusal_by_name(store: Store) -> None:
    def lose(session: Session) -> None:
        store_run(session, LINES)
        session.flush()
        session.delete(session.get_one(Round, (JOB, 1, 3)))

    store.write_sync(lose)
    refusals = tidy(store).refusals
    assert ["a line is missing" in refusal.message for refusal in refusals] == [True]


def test_one_ledger_that_can_not_be_thinned_keeps_no_other_from_it(store: Store) -> None:
    other = "01J0000000000000000000000B"
    store.write_sync(lambda session: store_run(session, [*LINES[:3], "{}", *LINES[4:]]))
    store.write_sync(lambda session: store_run(session, LINES, other))
    tidied = tidy(store)
    assert ([refusal.job_id for refusal in tidied.refusals], tidied.num_thinned) == ([JOB], 125)


def test_a_run_that_goes_back_meanwhile_is_left_alone(store: Store) -> None:
    store.write_sync(lambda session: store_run(session, LINES))
    found = store.read_sync(lambda session: read_slice(session, JOB, 125))
    assert found is not None
    prepared = prepare(found)
    assert isinstance(prepared, Prepared)
    back = update(Round).where(Round.round >= 30).values(is_abandoned=True)
    store.write_sync(lambda session: session.execute(back))
    assert store.write_sync(lambda session: thin(session, prepared)) is False
    assert start_of(store).round == 0
    thinned = select(func.count()).select_from(Round).where(Round.is_thinned.is_(True))
    assert store.read_sync(lambda session: session.scalar(thinned)) == 0


def test_a_ledger_that_starts_anew_meanwhile_is_left_alone(store: Store) -> None:
    store.write_sync(lambda session: store_run(session, LINES))
    found = store.read_sync(lambda session: read_slice(session, JOB, 125))
    assert found is not None
    prepared = prepare(found)
    assert isinstance(prepared, Prepared)
    header = state_to_json(replay(read_ledger(LINES[:2])).state)
    store.write_sync(lambda session: session.execute(update(LedgerStart).values(header=header)))
    assert store.write_sync(lambda session: thin(session, prepared)) is False


def test_a_job_that_was_deleted_meanwhile_is_no_harm(store: Store) -> None:
    store.write_sync(lambda session: store_run(session, LINES))
    found = store.read_sync(lambda session: read_slice(session, JOB, 125))
    assert found is not None
    prepared = prepare(found)
    assert not isinstance(prepared, Refusal)
    store.write_sync(lambda session: session.delete(session.get_one(Job, JOB)))
    assert store.write_sync(lambda session: thin(session, prepared)) is False
    assert tidy(store).num_thinned == 0


def test_large_rounds_are_thinned_in_small_writes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write_sync(lambda session: store_run(session, LINES))
    monkeypatch.setattr(thinning, "MAX_SLICE_CHARS", 3 * len(LINES[10]))
    found = store.read_sync(lambda session: read_slice(session, JOB, 125))
    assert found is not None
    assert 1 <= len(found.chain) <= 3
    monkeypatch.setattr(thinning, "MAX_SLICE_CHARS", 1)
    found = store.read_sync(lambda session: read_slice(session, JOB, 125))
    assert found is not None
    assert len(found.chain) == 1


def test_rounds_of_an_abandoned_attempt_are_thinned_with_the_chain_beside_them(store: Store) -> None:
    def fork(session: Session) -> None:
        store_run(session, LINES)
        for round in (10, 200):
            line = json.dumps({**json.loads(LINES[round + 1]), "attempt": 0})
            session.add(Round(job_id=JOB, attempt=0, round=round, item=line, at_s=0.0, is_abandoned=True))

    store.write_sync(fork)
    tidy(store)
    query = select(Round.round, Round.is_thinned).where(Round.is_abandoned).order_by(Round.round)
    rows = store.read_sync(lambda session: session.execute(query).all())
    assert [tuple(row) for row in rows] == [(10, True), (200, False)]


def test_many_rewinds_do_not_keep_more_abandoned_rounds_than_are_kept_of_the_chain(store: Store) -> None:
    def rewind(session: Session) -> None:
        store_run(session, LINES[:21])
        session.get_one(Job, JOB).attempt = 30
        for attempt in range(2, 30):
            for round in range(10):
                line = json.dumps({**json.loads(LINES[round + 1]), "attempt": attempt})
                session.add(
                    Round(job_id=JOB, attempt=attempt, round=round, item=line, at_s=0.0, is_abandoned=True)
                )

    store.write_sync(rewind)
    assert tidy(store).num_thinned == 180
    query = select(Round.attempt, func.count()).where(Round.is_abandoned, Round.is_thinned.is_(False))
    rows = store.read_sync(lambda session: session.execute(query.group_by(Round.attempt)).all())
    assert [tuple(row) for row in rows] == [(attempt, 10) for attempt in range(20, 30)]
    assert events(store, "ledger") == [{"thinned": True, "abandoned_rounds": 180}]
    assert tidy(store).num_thinned == 0


def test_keys_of_submissions_expire_after_their_time_and_not_before(store: Store) -> None:
    def submit(session: Session) -> None:
        session.add(make_job())
        for key, at_s in (("old", 4899.0), ("young", 4901.0), ("of a clock that stepped back", 9000.0)):
            session.add(Idempotency(owner="ann", key=key, body_digest="d", job_id=make_job().id, at_s=at_s))

    store.write_sync(submit)
    assert tidy(store, keys_kept_s=100.0).num_keys == 1
    left = store.read_sync(lambda session: set(session.scalars(select(Idempotency.key))))
    assert left == {"young", "of a clock that stepped back"}
    assert store.read_sync(lambda session: count(session, Job)) == 1


def test_packages_that_no_job_needs_go_after_their_time_with_their_files(
    store: Store, tmp_path: Path
) -> None:
    ages = {"old": 4899.0, "young": 4901.0, "needed": 1.0, "of a job that is over": 1.0}

    def upload(session: Session) -> None:
        for sha256, used_s in ages.items():
            session.add(Package(sha256=sha256, size_bytes=2, created_by="ann", created_s=1.0, used_s=used_s))
        for id, state, sha256 in (
            ("going", "QUEUED", "needed"),
            ("over", "FAILED", "of a job that is over"),
            ("without", "RUNNING", None),
        ):
            spec = {"name": "x", "entrypoint": "x", "runtime_env": {"working_dir": sha256}}
            session.add(make_job(id, state=state, spec=spec))

    store.write_sync(upload)
    for sha256 in ages:
        package_path(tmp_path, sha256).write_bytes(b"PK")
    settings: dict[str, Any] = {"packages": tmp_path, "packages_kept_s": 100.0}
    assert tidy(store, **settings).num_packages == 2
    left = store.read_sync(lambda session: set(session.scalars(select(Package.sha256))))
    assert left == {path.stem for path in tmp_path.glob("*.zip")} == {"young", "needed"}
    told = store.read_sync(
        lambda session: [(row.actor, row.action) for row in session.scalars(select(Audit))]
    )
    assert told == [("controller", "package.delete")] * 2
    assert tidy(store, **settings).num_packages == 0


def test_others_write_while_a_long_ledger_is_thinned(store: Store) -> None:
    async def run() -> int:
        task = asyncio.create_task(Housekeeping(store, keep_rounds=10, pause_s=0).tidy())
        written = 0
        while not task.done():
            await store.write(lambda session: session.get_one(Job, JOB).message)
            written += 1
        await task
        return written

    store.write_sync(lambda session: store_run(session, LINES))
    assert asyncio.run(run()) >= 4, "one write got in at each slice, at least"
