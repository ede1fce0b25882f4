"""The exchange: an answer that is lost, doubled or late changes when an override applies, never whether."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from hdet_ray.config import Fixed
from hdet_ray.core.planning import plan_for
from hdet_ray.core.replay import read_ledger, replay
from hdet_ray.exceptions import FencedError
from hdet_ray.train.protocol import ControlUnavailable
from hdet_ray.train.remote_control import ThreadCourier
from tests.service.simulated_run import JOB, Network, Service, Worker


class Run:
    """A worker, its network, its controller."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.service = Service(folder)
        self.network = Network(self.service)
        self.worker = Worker(self.network, folder, **settings)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    made = Run(tmp_path)
    yield made
    made.service.store.close()


def assert_consistent(run: Run) -> None:
    """The controller's chain is the worker's, bit for bit, and replays to where the worker is."""
    lines = run.service.ledger()
    mine = run.worker.ledger.read_text().splitlines()
    assert [json.loads(line) for line in lines[1:]] == run.worker.chain()
    assert set(lines[1:]) <= set(mine)  # the very same bytes
    replayed = replay(read_ledger(lines))
    assert replayed.departure is None
    assert replayed.state == run.worker.state


def test_an_undisturbed_run_is_stored_as_it_was_trained(run: Run) -> None:
    while not run.worker.is_over:
        run.worker.train()
    assert_consistent(run)
    job = run.service.job()
    assert (job.round, job.step) == (run.worker.state.round, 800)


def test_an_override_is_applied_once_a_report_has_confirmed_it(run: Run) -> None:
    run.worker.train(8)
    asked = run.service.override("lr", "scale", 0.5)
    assert (asked["state"], asked["applied_round"], asked["applies_at_round"]) == ("pending", None, 9)
    before = run.worker.plan.peak
    run.worker.train()
    assert run.worker.plan.peak == {key: rate * 0.5 for key, rate in before.items()}
    assert run.service.override_of(asked["id"])["state"] == "pending"
    run.worker.train()
    told = run.service.override_of(asked["id"])
    assert (told["state"], told["applied_round"]) == ("applied", 9)
    assert_consistent(run)


def test_an_override_whose_answer_is_lost_applies_a_round_later_and_once(run: Run) -> None:
    run.worker.train(8)
    asked = run.service.override("lr", "scale", 0.5)
    before = run.worker.plan.peak
    run.network.faults.append("answer_lost")  # exactly the answer that carries it
    run.worker.train()
    assert run.worker.plan.peak == before
    run.worker.deliver()
    assert run.service.override_of(asked["id"])["state"] == "pending"
    run.worker.train(2)
    assert run.worker.plan.peak == {key: rate * 0.5 for key, rate in before.items()}
    told = run.service.override_of(asked["id"])
    assert (told["state"], told["applied_round"]) == ("applied", 10)
    assert_consistent(run)


def test_an_outage_delays_reports_and_loses_none(run: Run) -> None:
    run.worker.train(3)
    run.network.is_down = True
    run.worker.train(5)
    assert run.service.job().round == 3
    run.network.is_down = False
    run.worker.deliver()
    assert run.service.job().round == 8
    run.worker.train()
    assert_consistent(run)


def test_after_one_silence_training_does_not_wait_again_until_all_was_delivered(run: Run) -> None:
    run.worker.train(3)
    run.network.is_down = True
    run.worker.train(5)
    assert [round for _, round in run.network.calls if round is not None] == [0, 1, 2, 3]


def test_an_outage_longer_than_the_memory_is_delivered_from_the_runs_ledger(tmp_path: Path) -> None:
    run = Run(tmp_path, controller=Fixed(sync_every=10), total_steps=1000)
    run.worker.train(3)
    run.network.is_down = True
    run.worker.train(80)
    run.network.is_down = False
    run.worker.deliver()
    run.worker.train()
    assert_consistent(run)
    assert {kind for kind, _ in run.network.calls} == {"open", "exchange"}  # nothing had to be adopted
    run.service.store.close()


def test_a_controller_that_restarts_goes_on_where_it_was(run: Run) -> None:
    for _ in range(6):
        run.worker.train(2)
        run.service.restart()
    assert_consistent(run)


def test_a_restored_older_database_gets_the_missing_rounds_back(run: Run, tmp_path: Path) -> None:
    import sqlite3

    run.worker.train(5)
    kept = sqlite3.connect(tmp_path / "backup.sqlite3")
    with sqlite3.connect(run.service.path) as live:
        live.backup(kept)
    kept.close()
    asked = run.service.override("lr", "scale", 0.5)
    run.worker.train(5)
    run.service.store.close()
    for suffix in ("", "-wal", "-shm"):
        Path(f"{run.service.path}{suffix}").unlink(missing_ok=True)
    (tmp_path / "backup.sqlite3").rename(run.service.path)
    from hdet_service.store.database import Store

    run.service.store = Store.open(run.service.path)
    run.service.restart()
    run.worker.train(2)
    assert_consistent(run)
    assert run.service.override_of(asked["id"])["state"] == "applied"


def test_attempts_that_ended_during_an_outage_are_delivered_from_where_they_parted(run: Run) -> None:
    run.worker.train(10)
    run.network.is_down = True
    run.worker.begin(7)
    run.worker.train(4)
    run.worker.begin(9)  # from a checkpoint of the attempt that the controller never heard of
    run.network.is_down = False
    run.worker.deliver()
    run.worker.train(2)
    assert_consistent(run)
    chain = [json.loads(line) for line in run.service.ledger()[1:]]
    assert [item["attempt"] for item in chain] == [1] * 7 + [2] * 2 + [3] * 2
    assert "adopt" not in {kind for kind, _ in run.network.calls}


def test_an_attempt_from_an_older_round_abandons_the_later_ones(run: Run) -> None:
    run.worker.train(6)
    run.worker.begin(4)
    assert run.service.job().round == 4
    run.worker.train(3)
    assert_consistent(run)
    everything = [json.loads(line) for line in run.service.ledger(all_attempts=True)[1:]]
    assert [(i["attempt"], i["round"]) for i in everything if i["round"] in (4, 5)] == [
        (1, 4),
        (2, 4),
        (1, 5),
        (2, 5),
    ]


def test_a_loop_that_loads_an_older_state_begins_an_attempt_of_its_own(run: Run) -> None:
    run.worker.train(5)
    run.worker.state, run.worker.attempt = run.worker.checkpoints[3], 2
    run.worker.plan = plan_for(run.worker.state, 2)
    run.worker.control.resume(run.worker.state)
    run.worker.train(2)
    assert_consistent(run)
    assert run.service.job().attempt == 2


def test_overrides_of_abandoned_rounds_are_queued_again(run: Run) -> None:
    run.worker.train(8)
    asked = run.service.override("lr", "scale", 0.5)
    run.worker.train(3)
    assert run.service.override_of(asked["id"])["state"] == "applied"
    run.worker.begin(7)
    assert run.service.override_of(asked["id"])["state"] == "pending"
    run.worker.train(2)
    told = run.service.override_of(asked["id"])
    assert (told["state"], told["applied_round"]) == ("applied", 8)
    assert_consistent(run)


def test_an_older_attempt_is_refused(run: Run, tmp_path: Path) -> None:
    run.worker.train(2)
    old = run.worker.control
    report = run.worker.report()
    run.worker.begin(2)
    with pytest.raises(FencedError, match="attempt 1"):
        old.exchange(run.worker.state, report)
    run.worker.train(2)
    assert_consistent(run)


def test_an_older_driver_is_refused_whatever_its_attempt(run: Run) -> None:
    run.worker.train(2)
    run.service.change_job(lambda job: setattr(job, "submission", 3))
    with pytest.raises(FencedError, match="driver 0"):
        run.worker.begin(2)


def test_a_job_that_has_ended_takes_no_more_reports(run: Run) -> None:
    run.worker.train(2)
    run.service.change_job(lambda job: setattr(job, "state", "CANCELED"))
    with pytest.raises(FencedError, match="CANCELED"):
        run.worker.train()


def test_a_repeated_report_gets_the_first_answer(run: Run) -> None:
    run.worker.train(8)
    run.service.override("lr", "scale", 0.5)
    run.network.faults.append("doubled")
    run.worker.train()
    run.worker.train()
    assert_consistent(run)
    assert len(run.worker.state.overrides) == 1


def test_a_pause_travels_with_the_answer(run: Run) -> None:
    run.service.change_job(lambda job: setattr(job, "wanted", "paused"))
    run.worker.train()
    assert run.worker.control.directive == "pause"


def test_another_protocol_is_told_so_and_nothing_is_stored(run: Run) -> None:
    answer = run.service.call("exchange", {"protocol": 99, "job": JOB})
    assert answer["status"] == "protocol"
    assert "99" in answer["message"]
    assert run.service.job().round == 0


def test_a_report_that_cannot_be_read_stores_nothing(run: Run) -> None:
    request = {"protocol": 1, "job": JOB, "attempt": 1, "round": 0, "report": {"round": "x"}}
    assert run.service.call("exchange", request)["status"] == "protocol"
    run.worker.train(2)
    assert_consistent(run)


def test_a_controller_of_an_older_epoch_is_not_listened_to(run: Run) -> None:
    run.service.restart()
    run.worker.train(2)
    run.service.runs = type(run.service.runs)(run.service.store, epoch=1)
    run.worker.train(2)
    assert run.service.job().round == 2


def test_a_run_with_its_own_thread_comes_through_a_storm(tmp_path: Path) -> None:
    """Over real threads: calls that hang past the worker's patience, lost answers, restarted workers."""
    weather = random.Random(7)
    service = Service(tmp_path)
    network = Network(service)
    calm = network.call

    def stormy(kind: str, request: Mapping[str, Any]) -> Mapping[str, Any]:
        fault = weather.random()
        if fault < 0.1:
            raise ControlUnavailable("lost")
        answer = calm(kind, request)
        if fault < 0.25:
            hang.wait(0.1)  # past the worker's patience, and then the answer comes after all
        if fault > 0.9:
            raise ControlUnavailable("its answer is lost")
        return answer

    hang = threading.Event()
    network.call = stormy  # type: ignore[method-assign]
    worker = Worker(
        network,
        tmp_path,
        controller=Fixed(alpha=0.1, sync_every=10),
        total_steps=1000,
        make_courier=lambda: ThreadCourier(retry_s=0.001, max_retry_s=0.002),
        timeout_s=0.05,
    )
    asked = []
    for round in range(80):
        worker.train()
        if round % 9 == 4:
            asked.append(service.override("lr", "scale", 1.1, expires_after_rounds=3)["id"])
        if round % 25 == 24:
            worker.begin(max(worker.state.round - 3, 0))
    network.call = calm  # type: ignore[method-assign]
    assert worker.control.flush(30.0)
    for _ in range(15):  # one that is answered in time is enough
        worker.train()
        assert worker.control.flush(30.0)
    lines = service.ledger()
    assert [json.loads(line) for line in lines[1:]] == worker.chain()
    assert replay(read_ledger(lines)).state == worker.state
    carried = [c["id"] for item in worker.chain() for c in item["report"]["commands"]]
    assert sorted(carried) == sorted(asked)
    worker.control.close()
    service.store.close()
