"""The exchange's decisions on plain values: each way in which a request can be out of step, alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from hdet_ray.config import Fixed
from hdet_ray.core.codec import canonical_text, digest, to_json
from hdet_ray.core.decide import decide, start
from hdet_ray.core.overrides import Freeze, Override
from hdet_ray.core.report import RoundReport
from hdet_ray.core.state import ScheduleState, state_to_json
from hdet_ray.exceptions import LedgerError
from hdet_ray.train.protocol import ExchangeRequest, OpenRequest
from hdet_service.exchange import Queued, Refused, Repeated, Standing, Taken, fence, opened, receive
from hdet_service.rewind import Known, Opened, begin
from tests.unit.runs import make_config, make_report

HALF = Queued(id=1, command=Override(id="o1", hparam="lr", op="scale", value=0.5))
FROZEN = Queued(id=2, command=Freeze(hparam="lr", is_frozen=True))
N = 2


class Chain:
    """What is stored of a run, as values."""

    def __init__(self) -> None:
        self.states = [start(make_config(Fixed(alpha=0.1, sync_every=20)), N)[0]]
        self.standing: Standing = opened(self.states[0], N, 1)
        self.lines: dict[int, str] = {}

    def request(self, *, is_decided: bool = False, **changes: Any) -> ExchangeRequest:
        """The running round's."""
        return request_of(
            make_report(self.standing.plan), self.standing.state, is_decided=is_decided, **changes
        )

    def receive(self, request: ExchangeRequest, queue: Sequence[Queued] = ()) -> Taken | Repeated | Refused:
        """Take it; what is written is kept."""
        outcome = receive(self.standing, request, queue, self.lines.get)
        if isinstance(outcome, Taken):
            self.standing = outcome.standing
            for line in outcome.lines:
                self.lines[line.round] = line.encoded.line
        return outcome

    def train(self, rounds: int) -> Chain:
        for _ in range(rounds):
            assert isinstance(self.receive(self.request()), Taken)
            self.states.append(self.standing.state)
        return self


def request_of(
    report: RoundReport, state: ScheduleState, *, is_decided: bool = False, **changes: Any
) -> ExchangeRequest:
    told: dict[str, Any] = {
        "job": "j",
        "attempt": 1,
        "round": report.round,
        "report": canonical_text(to_json(report)),
    }
    if is_decided:
        told["decided"] = {"plan_digest": digest(decide(state, report)[1])}
    return ExchangeRequest(**{**told, **changes})


def open_request(state: ScheduleState, attempt: int = 2) -> OpenRequest:
    return OpenRequest(job="j", attempt=attempt, state=state_to_json(state), num_replicas=N)


def begun(
    chain: Chain,
    state: ScheduleState,
    attempt: int = 2,
    *,
    has_own_rounds: bool = False,
    is_adopted: bool = False,
) -> Any:
    return begin(
        chain.standing,
        open_request(state, attempt),
        state,
        start=(0, digest(chain.states[0])),
        stored=chain.lines.get,
        has_own_rounds=has_own_rounds,
        is_adopted=is_adopted,
    )


def test_waiting_commands_are_folded_into_the_report() -> None:
    chain = Chain().train(2)
    taken = chain.receive(chain.request(), [HALF, FROZEN])
    assert isinstance(taken, Taken)
    assert taken.offered == (HALF.command, FROZEN.command)
    assert taken.folded == {1: 2, 2: 2}
    assert taken.standing.state.frozen == ("lr",)


def test_a_round_that_the_run_has_decided_carries_none_of_them() -> None:
    chain = Chain().train(2)
    taken = chain.receive(chain.request(is_decided=True), [HALF])
    assert isinstance(taken, Taken)
    assert (taken.offered, taken.folded) == ((), {})


def test_a_repeated_report_is_recognized_and_its_commands_are_told_again() -> None:
    chain = Chain().train(2)
    request = chain.request()
    chain.receive(request, [HALF])
    again = chain.receive(request, [FROZEN])
    assert isinstance(again, Repeated)
    assert again.offered == (HALF.command,)
    assert again.plan_digest == chain.standing.plan_digest


def test_a_lost_answer_is_taken_back_when_the_run_says_what_it_decided() -> None:
    chain = Chain().train(2)
    alone = chain.request(is_decided=True)
    chain.receive(chain.request(), [HALF])
    taken = chain.receive(alone, [replace(HALF, folded_round=2)])
    assert isinstance(taken, Taken)
    assert (taken.returned, taken.folded, taken.finished) == (2, {}, None)
    assert taken.standing.state.overrides == ()
    assert taken.standing.round == 3


def test_a_report_that_followed_a_plan_without_the_lost_commands_corrects_the_line_before_it() -> None:
    chain = Chain().train(2)
    state, report = chain.standing.state, make_report(chain.standing.plan)
    chain.receive(chain.request(), [HALF])
    alone, plan = decide(state, report)  # the answer was lost, and so was what the run said of it
    taken = chain.receive(request_of(make_report(plan), alone), [replace(HALF, folded_round=2), FROZEN])
    assert isinstance(taken, Taken)
    assert [line.round for line in taken.lines] == [2, 3]
    assert [line.report.commands for line in taken.lines] == [(), (HALF.command, FROZEN.command)]
    assert (taken.returned, taken.folded) == (2, {1: 3, 2: 3})


def test_a_plan_that_nothing_here_leads_to_is_asked_about() -> None:
    chain = Chain().train(2)
    report = replace(make_report(chain.standing.plan), plan_digest="f" * 32)
    refused = chain.receive(request_of(report, chain.standing.state))
    assert isinstance(refused, Refused)
    assert refused.status == "resync"


def test_a_round_that_is_not_due_yet_is_asked_about() -> None:
    chain = Chain().train(1)
    ahead = Chain().train(3)
    refused = chain.receive(ahead.request())
    assert isinstance(refused, Refused)
    assert (refused.status, "round 1" in refused.message) == ("resync", True)


def test_another_report_of_a_stored_round_is_no_repetition() -> None:
    chain = Chain().train(1)
    other = replace(make_report(opened(chain.states[0], N, 1).plan), facts={"wall_s": 9.0})
    refused = chain.receive(request_of(other, chain.states[0]))
    assert isinstance(refused, Refused)
    assert refused.status == "resync"


def test_commands_that_a_delivered_line_brings_along_leave_the_queue() -> None:
    chain = Chain().train(1)
    report = replace(make_report(chain.standing.plan), commands=(FROZEN.command,))
    taken = chain.receive(request_of(report, chain.standing.state, is_decided=True), [HALF, FROZEN])
    assert isinstance(taken, Taken)
    assert taken.folded == {2: 1}


def test_a_report_of_another_number_of_replicas_than_its_plan_is_for_is_not_taken() -> None:
    chain = Chain()
    report = make_report(chain.standing.plan)
    refused = chain.receive(request_of(replace(report, replicas=report.replicas * 2), chain.states[0]))
    assert isinstance(refused, Refused)
    assert refused.status == "resync"


def test_a_delivered_round_may_be_of_an_attempt_of_another_size() -> None:
    chain = Chain().train(2)
    state = chain.standing.state
    report = make_report(opened(state, 5, 1).plan)
    taken = chain.receive(request_of(report, state, is_decided=True))
    assert isinstance(taken, Taken)
    assert taken.finished is not None
    assert taken.finished.num_replicas == 5


def test_what_a_report_confirms_is_the_state_of_the_plan_that_it_followed() -> None:
    chain = Chain().train(2)
    before = chain.standing.state
    taken = chain.receive(chain.request())
    assert isinstance(taken, Taken)
    assert (taken.confirmed, taken.confirmed_before) == (before, chain.states[1])


# ---- attempts


def test_an_attempt_from_an_older_round_goes_on_from_there() -> None:
    chain = Chain().train(4)
    outcome = begun(chain, chain.states[2])
    assert isinstance(outcome, Opened)
    assert (outcome.standing.round, outcome.standing.attempt, outcome.replaces_start) == (2, 2, False)


@pytest.mark.parametrize("is_adopted", [False, True])
def test_an_opening_that_comes_again_after_the_run_went_on_changes_nothing(is_adopted: bool) -> None:
    chain = Chain().train(4)
    told_again = begun(chain, chain.states[2], attempt=1, has_own_rounds=True, is_adopted=is_adopted)
    assert isinstance(told_again, Known)


def test_an_attempt_that_has_trained_nothing_yet_may_go_further_back() -> None:
    chain = Chain().train(4)
    chain.standing = replace(chain.standing, attempt=2)
    assert isinstance(begun(chain, replace(chain.states[3], log_scale=0.3)), Refused)
    outcome = begun(chain, chain.states[1])
    assert isinstance(outcome, Opened)
    assert outcome.standing.round == 1


def test_rounds_that_are_missing_here_are_asked_for() -> None:
    chain = Chain().train(2)
    ahead = Chain().train(5)
    refused = begun(chain, ahead.standing.state)
    assert isinstance(refused, Refused)
    assert (refused.status, refused.from_round) == ("resync", 1)  # the newest line may be a lost answer's
    assert refused.line == {"attempt": 1, "report_digest": json.loads(chain.lines[0])["report_digest"]}


def test_an_attempt_whose_newest_round_was_decided_without_our_commands_delivers_it_again() -> None:
    chain = Chain().train(2)
    alone, _ = decide(chain.standing.state, make_report(chain.standing.plan))
    chain.receive(chain.request(), [HALF])
    refused = begun(chain, alone)
    assert isinstance(refused, Refused)
    assert refused.from_round == 2


def test_a_state_that_nothing_leads_to_is_adopted_and_the_ledger_starts_anew() -> None:
    chain = Chain().train(4)
    strange = replace(chain.states[2], log_scale=0.3)
    assert isinstance(begun(chain, strange), Refused)
    outcome = begun(chain, strange, is_adopted=True)
    assert isinstance(outcome, Opened)
    assert outcome.replaces_start


def test_the_first_opening_makes_the_schedule() -> None:
    state = start(make_config(Fixed()), N)[0]
    outcome = begin(
        None, open_request(state, 1), state, start=None, stored={}.get, has_own_rounds=False, is_adopted=False
    )
    assert isinstance(outcome, Opened)
    assert outcome.is_first


@pytest.mark.parametrize(
    ("changes", "known", "status", "words"),
    [
        ({"protocol": 2}, {}, "protocol", "protocol 2"),
        ({"epoch_seen": 9}, {}, "fenced", "epoch 9"),
        ({"submission": 1}, {"submission": 2}, "fenced", "driver 1"),
        ({"attempt": 1}, {"attempt": 2}, "fenced", "attempt 1"),
        ({}, {"closed": "job j is FAILED"}, "fenced", "FAILED"),
    ],
)
def test_who_is_not_listened_to_is_told_why(
    changes: dict[str, Any], known: dict[str, Any], status: str, words: str
) -> None:
    request = Chain().request(**changes)
    refused = fence(request, **{"attempt": 1, "submission": 0, "epoch": 3, **known})
    assert refused is not None
    assert (refused.status, words in refused.message) == (status, True)


def test_everyone_else_is_listened_to() -> None:
    assert fence(Chain().request(attempt=4), attempt=3, submission=0, epoch=1) is None


def test_a_reports_text_stands_in_the_line_as_it_came() -> None:
    chain = Chain()
    request = chain.request()
    taken = chain.receive(request)
    assert isinstance(taken, Taken)
    assert f'"report": {request.report}, ' in taken.lines[0].encoded.line
    again = Chain()
    as_json = again.receive(replace(request, report=json.loads(request.report)))
    assert isinstance(as_json, Taken)
    assert as_json.lines == taken.lines


@pytest.mark.parametrize("text", ["", "{", "[]", '{"round": NaN}', '"round"'])
def test_a_text_that_is_no_report_is_refused(text: str) -> None:
    chain = Chain()
    with pytest.raises(LedgerError):
        chain.receive(replace(chain.request(), report=text))


def test_a_text_of_several_lines_is_written_anew() -> None:
    chain = Chain()
    request = chain.request()
    taken = chain.receive(replace(request, report=json.dumps(json.loads(request.report), indent=1)))
    assert isinstance(taken, Taken)
    assert "\n" not in taken.lines[0].encoded.line
