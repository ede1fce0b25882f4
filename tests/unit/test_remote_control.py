"""Remote control: the controller is asked, waited for a little, and never needed."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from hdet_ray.config import Fixed
from hdet_ray.core.codec import digest
from hdet_ray.core.decide import decide, start
from hdet_ray.core.overrides import Override
from hdet_ray.core.plan import RATE, Plan
from hdet_ray.core.replay import read_ledger, replay
from hdet_ray.core.state import ScheduleState
from hdet_ray.exceptions import FencedError
from hdet_ray.train.outbox import MAX_HELD, Due, Identity, Outbox
from hdet_ray.train.protocol import PROTOCOL, Answer, ControlUnavailable, answer_to_json
from hdet_ray.train.remote_control import CATCH_UP_ROUNDS, RemoteControl, ThreadCourier
from hdet_ray.train.round_lines import RoundLines
from tests.unit.runs import make_config, make_report

HALF = Override(id="o1", hparam=RATE, op="scale", value=0.5)
PATIENT_S = 30.0
"""Longer than anything here takes: a test that gets there fails."""

Script = Callable[[str, Mapping[str, Any]], Answer]


def fine(kind: str, request: Mapping[str, Any]) -> Answer:
    """A controller that is content with everything."""
    return Answer(status="ok", epoch=1)


class Scripted:
    """A transport whose controller is a function; what went over it is kept."""

    def __init__(self, script: Script = fine) -> None:
        self.script = script
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def call(self, kind: str, request: Mapping[str, Any]) -> Mapping[str, Any]:
        self.calls.append((kind, json.loads(json.dumps(request))))
        return json.loads(json.dumps(answer_to_json(self.script(kind, request))))  # type: ignore[no-any-return]

    def rounds(self) -> list[tuple[int, bool]]:
        """Rounds that were said, and whether they had been decided before."""
        return [(r["round"], r["decided"] is not None) for kind, r in self.calls if kind == "exchange"]


class Run:
    """A run without training under a remote control."""

    def __init__(
        self, transport: Scripted, ledger: Path, *, timeout_s: float = PATIENT_S, **control: Any
    ) -> None:
        self.transport = transport
        self.state: ScheduleState
        self.plan: Plan
        self.state, self.plan = start(make_config(Fixed(sync_every=10), total_steps=2000), 2)
        self.control = RemoteControl(
            Identity(job="j", attempt=1, num_replicas=2),
            transport,
            control_timeout_s=timeout_s,
            ledger=ledger,
            courier=ThreadCourier(retry_s=0.001, max_retry_s=0.001),
            **control,
        )

    def begin(self) -> Run:
        self.control.resume(self.state)
        return self

    def train(self, rounds: int = 1) -> None:
        for _ in range(rounds):
            self.state, self.plan = self.control.exchange(self.state, make_report(self.plan))


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def make(script: Script = fine, **settings: Any) -> Run:
        runs.append(Run(Scripted(script), tmp_path / "ledger.jsonl", **settings))
        return runs[-1].begin()

    yield make
    for run in runs:
        run.control.close()


def test_the_answers_commands_are_decided_with(begin: Callable[..., Run]) -> None:
    def script(kind: str, request: Mapping[str, Any]) -> Answer:
        is_second = kind == "exchange" and request["round"] == 1
        return Answer(status="ok", epoch=1, commands=(HALF,) if is_second else ())

    run = begin(script)
    run.train()
    before = run.plan.peak[RATE, 0]
    run.train()
    assert run.plan.peak[RATE, 0] == before * 0.5
    assert run.plan.overrides == ("o1",)


def test_the_runs_own_ledger_replays_with_the_commands_in_it(
    begin: Callable[..., Run], tmp_path: Path
) -> None:
    run = begin(
        lambda kind, request: Answer(status="ok", epoch=1, commands=(HALF,)[request.get("round") != 1 :])
    )
    run.train(4)
    replayed = replay(read_ledger((tmp_path / "ledger.jsonl").read_text().splitlines()))
    assert replayed.departure is None
    assert replayed.state == run.state


def test_an_answer_that_comes_too_late_is_not_used_and_the_round_is_said_again_as_decided(
    begin: Callable[..., Run],
) -> None:
    is_answered = threading.Event()

    def script(kind: str, request: Mapping[str, Any]) -> Answer:
        if kind == "exchange" and request["decided"] is None:
            is_answered.wait(PATIENT_S)
            return Answer(status="ok", epoch=1, commands=(HALF,))
        return Answer(status="ok", epoch=1)

    run = begin(script, timeout_s=0.05)
    peak = run.plan.peak
    run.train()  # returns while the call still hangs
    assert not is_answered.is_set()
    assert run.plan.peak == peak
    is_answered.set()
    assert run.control.flush(PATIENT_S)
    assert run.transport.rounds() == [(0, False), (0, True)]
    run.transport.script = fine
    run.train()
    assert run.plan.overrides == ()


def test_a_first_call_that_takes_longer_than_a_boundary_may_makes_no_round_late(
    begin: Callable[..., Run],
) -> None:
    def script(kind: str, request: Mapping[str, Any]) -> Answer:
        if kind == "open":
            time.sleep(0.3)  # a cold line
        return Answer(status="ok", epoch=1)

    run = begin(script, timeout_s=0.05)
    run.control._timeout_s = PATIENT_S  # whatever else this machine does
    run.train(2)
    assert run.transport.rounds() == [(0, False), (1, False)]


def test_a_controller_that_is_away_holds_up_the_beginning_no_longer_than_its_refusal(
    begin: Callable[..., Run],
) -> None:
    def script(kind: str, request: Mapping[str, Any]) -> Answer:
        raise ControlUnavailable("no such actor")

    run = begin(script, open_timeout_s=1e6)  # returns
    run.train()
    assert run.state.round == 1


def test_after_one_silence_nobody_waits_until_everything_was_delivered(begin: Callable[..., Run]) -> None:
    comes_back = threading.Event()

    def script(kind: str, request: Mapping[str, Any]) -> Answer:
        if kind == "exchange":
            comes_back.wait(PATIENT_S)
        return Answer(status="ok", epoch=1)

    run = begin(script, timeout_s=0.05)
    run.train()
    waiting = threading.Thread(target=run.train, args=(5,))
    waiting.start()
    waiting.join(PATIENT_S)
    assert not comes_back.is_set()
    assert run.state.round == 6  # five more rounds, with the call of the first still hanging
    comes_back.set()
    assert run.control.flush(PATIENT_S)
    assert run.transport.rounds() == [(0, False), *((k, True) for k in range(6))]
    run.train()
    assert run.transport.rounds()[-1] == (6, False)


def test_a_run_that_outruns_its_deliveries_waits_for_them_once_calls_succeed(
    begin: Callable[..., Run],
) -> None:
    may_answer = threading.Semaphore(0)

    def script(kind: str, request: Mapping[str, Any]) -> Answer:
        if kind == "exchange" and request["round"] < 2 * CATCH_UP_ROUNDS:
            may_answer.acquire(timeout=PATIENT_S)
        return Answer(status="ok", epoch=1)

    run = begin(script, timeout_s=0.05)
    run.train(CATCH_UP_ROUNDS)
    assert run.transport.rounds() == [(0, False)]
    run.control._timeout_s = PATIENT_S
    for _ in range(4 * CATCH_UP_ROUNDS):
        may_answer.release()
    run.train(CATCH_UP_ROUNDS + 1)
    assert run.transport.rounds()[-1] == (2 * CATCH_UP_ROUNDS, False)


def test_a_call_that_fails_at_once_costs_no_wait(begin: Callable[..., Run]) -> None:
    def script(kind: str, request: Mapping[str, Any]) -> Answer:
        if kind == "exchange" and request["decided"] is None:
            raise ControlUnavailable("restarting")
        return Answer(status="ok", epoch=1)

    run = begin(script)  # with a timeout that the test would not survive
    run.train(2)
    assert run.state.round == 2


def test_a_run_begins_without_a_controller_and_opens_later(begin: Callable[..., Run]) -> None:
    is_there = threading.Event()

    def script(kind: str, request: Mapping[str, Any]) -> Answer:
        if not is_there.is_set():
            raise ControlUnavailable("no such actor")
        return Answer(status="ok", epoch=1)

    run = begin(script)
    run.train(3)
    is_there.set()
    assert run.control.flush(PATIENT_S)
    kinds = [kind for kind, request in run.transport.calls if kind != "open"]
    assert kinds == ["exchange"] * 3
    assert run.transport.rounds() == [(0, True), (1, True), (2, True)]


def test_whatever_a_call_raises_the_next_one_is_made(begin: Callable[..., Run]) -> None:
    raised = iter([RuntimeError("unheard of")])

    def script(kind: str, request: Mapping[str, Any]) -> Answer:
        if kind == "exchange" and (error := next(raised, None)):
            raise error
        return Answer(status="ok", epoch=1)

    run = begin(script)
    run.train()
    assert run.control.flush(PATIENT_S)


def test_an_older_attempt_stops_with_the_reason(begin: Callable[..., Run]) -> None:
    def script(kind: str, request: Mapping[str, Any]) -> Answer:
        return Answer(status="fenced" if kind == "exchange" else "ok", epoch=1, message="attempt 2 has begun")

    run = begin(script)
    with pytest.raises(FencedError, match="attempt 2 has begun"):
        run.train()


def test_an_attempt_that_is_refused_at_its_opening_never_trains(tmp_path: Path) -> None:
    transport = Scripted(lambda *_: Answer(status="fenced", epoch=1, message="driver 2 follows"))
    with pytest.raises(FencedError, match="driver 2"):
        Run(transport, tmp_path / "ledger.jsonl").begin()


def test_a_controller_of_an_older_epoch_is_not_believed(begin: Callable[..., Run]) -> None:
    epochs = iter([5, 4, 4, 4])

    def script(kind: str, request: Mapping[str, Any]) -> Answer:
        is_old = (epoch := next(epochs, 5)) == 4
        return Answer(status="fenced" if is_old else "ok", epoch=epoch)

    run = begin(script)
    run.train(2)
    assert run.control.flush(PATIENT_S)
    assert run.transport.calls[1][1]["epoch_seen"] == 5


@pytest.mark.parametrize("status", ["protocol", "unknown_job"])
def test_a_controller_that_cannot_help_is_no_reason_to_stop(begin: Callable[..., Run], status: Any) -> None:
    run = begin(lambda *_: Answer(status=status, epoch=1, message="not here"))
    run.train(3)
    assert run.state.round == 3


def test_notes_go_out_after_the_rounds_and_once_where_they_are_refused(begin: Callable[..., Run]) -> None:
    run = begin(lambda kind, _: Answer(status="protocol" if kind == "note" else "ok", epoch=1))
    run.train()
    run.control.note("checkpoint", {"round": 1})
    assert run.control.flush(PATIENT_S)
    assert [kind for kind, _ in run.transport.calls] == ["open", "exchange", "note"]
    assert run.transport.calls[-1][1]["data"] == {"round": 1}


def test_a_flush_that_takes_too_long_gives_up(begin: Callable[..., Run]) -> None:
    def script(kind: str, request: Mapping[str, Any]) -> Answer:
        raise ControlUnavailable("gone")

    run = begin(script)
    run.train()
    assert not run.control.flush(0.01)


def test_a_directive_is_kept_until_the_next_answer(begin: Callable[..., Run]) -> None:
    run = begin(lambda *_: Answer(status="ok", epoch=1, directive="pause"))
    assert run.control.directive == "pause"


def test_requests_carry_the_protocols_version(begin: Callable[..., Run]) -> None:
    run = begin()
    run.train()
    assert [request["protocol"] for _, request in run.transport.calls] == [PROTOCOL, PROTOCOL]


# ---- the outbox alone: what it says when the controller has lost the thread


def due(state: ScheduleState, plan: Plan, *, is_decided: bool = True) -> Due:
    report = make_report(plan)
    following, next_plan = decide(state, report)
    made = Due(state, report)
    if is_decided:
        made.is_given_up, made.plan_digest, made.following = True, digest(next_plan), following
    return made


def test_a_state_is_adopted_only_where_nothing_else_helps() -> None:
    state, plan = start(make_config(Fixed(sync_every=10)), 2)
    resyncs = iter(["resync", "resync", "resync"])

    def script(kind: str, request: Mapping[str, Any]) -> Answer:
        return Answer(status="ok" if kind in ("open", "adopt") else next(resyncs, "ok"), epoch=1)  # type: ignore[arg-type]

    transport = Scripted(script)
    outbox = Outbox(Identity(job="j", attempt=1), transport)
    outbox.put(due(state, plan))
    outbox.deliver()()
    assert [kind for kind, _ in transport.calls] == [
        "exchange",
        "open",
        "exchange",
        "adopt",
        "exchange",
        "adopt",
    ]
    # It decides otherwise than the run did: it takes what the run has become.
    assert transport.calls[-1][1]["state"]["state"]["round"] == 1
    assert outbox.is_idle


def test_only_so_many_rounds_are_held_in_memory() -> None:
    state, plan = start(make_config(Fixed(sync_every=10), total_steps=2000), 2)
    outbox = Outbox(Identity(job="j", attempt=1), Scripted())
    for _ in range(3 * MAX_HELD):
        outbox.put(made := due(state, plan))
        state, plan = decide(made.state, made.report)
    assert len(outbox._rounds) == MAX_HELD


def test_the_newest_chain_of_a_ledger_is_read_past_what_was_left_behind(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    order = [(1, 0), (1, 1), (1, 2), (2, 1), (2, 2), (3, 2)]
    lines = ["{}", *(json.dumps({"attempt": a, "round": k}).replace("}", ', "x": 0}') for a, k in order)]
    path.write_text("\n".join(lines) + '\n{"attempt": 4, "round": 3, "cut')
    found = RoundLines(path)
    assert [(i["attempt"], i["round"]) for i in found.read(0, 3)] == [(1, 0), (2, 1), (3, 2)]
    assert [(i["attempt"], i["round"]) for i in found.read(2, 3)] == [(3, 2)]
    assert list(found.read(0, 4)) == []  # the last line was cut short: better none than a gap
    assert found.newest_attempt() == 3
