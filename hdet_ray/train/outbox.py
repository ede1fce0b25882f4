"""The outbox: what the controller has not acknowledged yet, delivered in order, one call at a time.

A call that gets no answer may have been carried out or not. Each one can be said again: the controller
knows what it has. Where it has lost the thread, rounds are delivered again from the run's own ledger.
"""

from __future__ import annotations

import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from hdet_ray.core.codec import canonical_text, digest_of_json, to_json
from hdet_ray.core.report import RoundReport
from hdet_ray.core.state import ScheduleState, state_to_json
from hdet_ray.train.protocol import (
    Answer,
    ControlUnavailable,
    Directive,
    ExchangeRequest,
    NoteRequest,
    OpenRequest,
    Transport,
    answer_from_json,
    request_to_json,
)
from hdet_ray.train.round_lines import RoundLines

logger = logging.getLogger(__name__)

MAX_HELD = 32
"""Rounds that are held in memory; older ones are read from the run's ledger when they are asked for."""
MAX_NOTES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who speaks."""

    job: str
    attempt: int
    submission: int = 0
    num_replicas: int = 1
    storage_path: str | None = None
    resumed_round: int | None = None


@dataclass(slots=True, eq=False)
class Due:
    """A round that is to be exchanged; it ends with an answer, or with a decision of the run's own."""

    state: ScheduleState
    """Before the round's report."""
    report: RoundReport
    answer: Answer | None = None
    has_failed: bool = False
    """A call for it failed, so nobody needs to wait for it."""
    is_given_up: bool = False
    """Nobody waits for an answer any more; a decision follows."""
    plan_digest: str | None = None
    """Of the plan that was decided without the controller."""
    following: ScheduleState | None = None
    """The state of that decision."""


class FencedByController(ControlUnavailable):
    """A newer attempt has begun."""


class Outbox:
    """Delivers; knows no threads and never waits.

    Args:
        identity: Who speaks.
        transport: Carries calls.
        lines: The run's own ledger, to deliver rounds again from; None where there is none.
    """

    def __init__(self, identity: Identity, transport: Transport, lines: RoundLines | None = None) -> None:
        self.identity = identity
        self.directive: Directive | None = None
        """What the controller asked for last, beside the plan."""
        self.fenced: str | None = None
        """Why this attempt is not the run's any more."""
        self.epoch_seen = 0
        self._transport = transport
        self._lines = lines
        self._to_open: ScheduleState | None = None
        self._rounds: deque[Due] = deque()
        self._notes: deque[NoteRequest] = deque(maxlen=MAX_NOTES)
        self._is_broken = False
        self._has_begun = False

    @property
    def is_idle(self) -> bool:
        """Everything was acknowledged, and the newest call went well."""
        return self._to_open is None and not self._rounds and not self._is_broken

    @property
    def is_broken(self) -> bool:
        """The newest call failed."""
        return self._is_broken

    @property
    def oldest_round(self) -> int | None:
        """The first round that was not acknowledged yet."""
        return self._rounds[0].report.round if self._rounds else None

    @property
    def is_empty(self) -> bool:
        """Nothing is left to deliver."""
        return self._to_open is None and not self._rounds and not self._notes

    @property
    def has_work(self) -> bool:
        """The next delivery can be made now."""
        if self.fenced is not None or self.is_empty:
            return False
        if self._to_open is None and self._rounds:
            head = self._rounds[0]
            return not (head.is_given_up and head.plan_digest is None)
        return True

    def open(self, state: ScheduleState) -> None:
        """An attempt begins at this state: the first one, or one whose loop has loaded a state of its own.

        What an earlier one left undelivered stands in the run's ledger, and is asked for if it counts.
        """
        if self._has_begun:
            self.identity = replace(self.identity, attempt=self.identity.attempt + 1)
        self._has_begun = True
        self._rounds.clear()
        self._to_open = state

    def put(self, due: Due) -> None:
        """Queue a round. Where too many wait, the oldest are left to the run's ledger."""
        self._rounds.append(due)
        if len(self._rounds) > MAX_HELD:
            del self._rounds[1]  # the head may be under way; a gap makes the controller ask for the rest

    def note(self, kind: str, data: Mapping[str, Any]) -> None:
        """Queue a note; notes go out when all rounds have."""
        self._notes.append(
            NoteRequest(
                job=self.identity.job,
                attempt=self.identity.attempt,
                submission=self.identity.submission,
                kind=kind,
                data=data,
            )
        )

    def deliver(self) -> Callable[[], None]:
        """Make the next call, and what it leads to; `has_work` says whether there is one.

        Returns:
            Takes what was delivered off the queue; called where nobody else looks at it.

        Raises:
            ControlUnavailable: no usable answer; everything stays in the queue.
            FencedByController: a newer attempt has begun.
        """
        if self._to_open is not None:
            state = self._to_open
            self._reopen(state)
            return lambda: self._has_opened(state)
        if self._rounds:
            due, plan_digest = self._rounds[0], self._rounds[0].plan_digest
            answer = self._deliver_round(due)
            return lambda: self._has_delivered(due, answer, plan_digest)
        note = self._notes[0]
        self._call("note", note)
        return lambda: self._has_noted(note)

    def broke(self) -> None:
        """A delivery failed: the head's waiter need not wait."""
        self._is_broken = True
        if self._rounds:
            self._rounds[0].has_failed = True

    # ---- after a call

    def _has_opened(self, state: ScheduleState) -> None:
        if self._to_open is state:
            self._to_open = None
        self._is_broken = False

    def _has_delivered(self, due: Due, answer: Answer | None, plan_digest: str | None) -> None:
        self._is_broken = False
        if due.is_given_up and plan_digest is None:
            return  # the answer came too late: the round goes out once more, with what was decided
        due.answer = answer
        if self._rounds and self._rounds[0] is due:
            self._rounds.popleft()

    def _has_noted(self, note: NoteRequest) -> None:
        self._is_broken = False
        if self._notes and self._notes[0] is note:
            self._notes.popleft()

    # ---- calls

    def _deliver_round(self, due: Due) -> Answer | None:
        """Exchange a round; where the controller has lost the thread, give it back step by step."""
        request = self._request(due)
        answer = self._call("exchange", request)
        if answer.status != "resync":
            return answer
        logger.warning("controller lost the thread: round=%d cause=%s", request.round, answer.message)
        self._reopen(due.state)
        answer = self._call("exchange", request)
        if answer.status != "resync":
            return answer
        self._call("adopt", self._opening(due.state))
        answer = self._call("exchange", request)
        if answer.status != "resync":
            return answer
        if due.following is None or request.decided is None:
            raise ControlUnavailable(f"the controller can't take round {request.round}: {answer.message}")
        # It decides otherwise than the run did (another release): it takes what the run has become.
        logger.warning("controller decides otherwise: round=%d cause=%s", request.round, answer.message)
        self._call("adopt", self._opening(due.following))
        return None

    def _reopen(self, state: ScheduleState) -> None:
        """Open; where what the controller has doesn't lead here, deliver what is missing first."""
        answer = self._call("open", self._opening(state))
        if answer.status != "resync":
            return
        logger.warning("controller lacks rounds: round=%d cause=%s", state.round, answer.message)
        first = answer.from_round
        if (
            first is None
            or not self._has_same_line(first - 1, answer)
            or not self._redeliver(first, state.round)
        ):
            first = self._go_back(state.round)
            if first is not None:
                self._redeliver(first, state.round)
        answer = self._call("open", self._opening(state))
        if answer.status == "resync":
            self._call("adopt", self._opening(state))

    def _has_same_line(self, round: int, answer: Answer) -> bool:
        return self._lines is not None and answer.line in (None, self._lines.signature(round))

    def _go_back(self, round: int) -> int | None:
        """Open at the newest earlier state that the controller knows too; its round, or None.

        Attempts that ended while the controller was away may have parted from what it has long before.
        """
        first = None if self._lines is None else self._lines.first_round()
        if self._lines is None or first is None or first >= round:
            return None
        back = [round - 2**power for power in range((round - first).bit_length())]
        for earlier, state in sorted(self._lines.states({first, *back}).items(), reverse=True):
            if self._call("open", self._opening(state)).status == "ok":
                return earlier
        return None

    def _redeliver(self, first: int, end: int) -> bool:
        """Deliver rounds again from the run's own ledger; False where it lacks them or they don't fit."""
        if self._lines is None:
            return False
        for item in self._lines.read(first, end):
            request = ExchangeRequest(
                job=self.identity.job,
                attempt=self.identity.attempt,
                submission=self.identity.submission,
                line_attempt=item["attempt"],
                round=item["round"],
                epoch_seen=self.epoch_seen,
                report=canonical_text(item["report"]),
                decided={"plan_digest": digest_of_json(item["plan"])},
            )
            if self._call("exchange", request).status == "resync":
                return False
        return True

    def _call(self, kind: str, request: OpenRequest | ExchangeRequest | NoteRequest) -> Answer:
        answer = answer_from_json(self._transport.call(kind, request_to_json(request)))
        if answer.epoch < self.epoch_seen:
            raise ControlUnavailable(
                f"a controller of epoch {answer.epoch} answered, after one of epoch {self.epoch_seen} had"
            )
        self.epoch_seen = answer.epoch
        if isinstance(request, NoteRequest):
            if answer.status != "ok":
                logger.warning("note refused: kind=%s cause=%s", request.kind, answer.message)
            return answer  # it is only a note: refused once, it is not said again
        if answer.status == "fenced":
            raise FencedByController(answer.message)
        if answer.status in ("unknown_job", "protocol"):
            raise ControlUnavailable(answer.message)
        if answer.status == "ok":
            self.directive = answer.directive
        return answer

    def _request(self, due: Due) -> ExchangeRequest:
        return ExchangeRequest(
            job=self.identity.job,
            attempt=self.identity.attempt,
            submission=self.identity.submission,
            round=due.report.round,
            epoch_seen=self.epoch_seen,
            report=canonical_text(to_json(due.report)),
            decided=None if due.plan_digest is None else {"plan_digest": due.plan_digest},
        )

    def _opening(self, state: ScheduleState) -> OpenRequest:
        return OpenRequest(
            job=self.identity.job,
            attempt=self.identity.attempt,
            submission=self.identity.submission,
            epoch_seen=self.epoch_seen,
            state=state_to_json(state),
            num_replicas=self.identity.num_replicas,
            line=None if self._lines is None else self._lines.signature(state.round - 1),
            storage_path=self.identity.storage_path,
            resumed_round=self.identity.resumed_round,
            host=socket.gethostname(),
            pid=os.getpid(),
        )
