"""Remote control: a run's rank 0 and the controller that owns its schedule. Training never waits long for it.

The controller's answer is an offer of commands; what rank 0 decides with them, by the same pure function, is
the plan that counts. No answer in time: it decides without, keeps the report and has it delivered later.
After one silence it does not wait again until everything was delivered.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from hdet_ray.core.decide import decide
from hdet_ray.core.plan import Plan
from hdet_ray.core.replay import encode_round
from hdet_ray.core.report import RoundReport
from hdet_ray.core.state import ScheduleState
from hdet_ray.exceptions import FencedError
from hdet_ray.optim.control import append_line, open_ledger
from hdet_ray.train.outbox import Due, FencedByController, Identity, Outbox
from hdet_ray.train.protocol import Answer, ControlUnavailable, Directive, Transport
from hdet_ray.train.round_lines import RoundLines
from hdet_ray.train.settings import CONTROL_TIMEOUT_S

logger = logging.getLogger(__name__)

FLUSH_TIMEOUT_S = 30.0
"""How long the end of a run waits for what is still to be delivered."""

OPEN_TIMEOUT_S = 5.0
"""How long the beginning of an attempt waits at most. Its call is the first over this line: the handle is
cold, and every worker of the group is starting on the same machines. Where it was given up as early as a
boundary's, the first rounds were decided alone though nothing was wrong."""

CATCH_UP_ROUNDS = 16
"""Where more is undelivered than so many rounds ago though calls succeed, training waits for the delivery."""


class Courier(Protocol):
    """Has an outbox delivered while others wait for it, or not."""

    def start(self, outbox: Outbox) -> None:
        """Deliver what is in it from now on."""

    def change(self, act: Callable[[], None]) -> None:
        """Do something to the outbox while no delivery looks at it."""

    def wait(self, is_over: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until it is over; False where that takes longer."""

    def close(self) -> None:
        """Deliver nothing more."""


class RemoteControl:
    """Decides together with a controller elsewhere; rank 0 only.

    Args:
        identity: The job and the attempt.
        transport: Carries calls to the controller.
        control_timeout_s: How long a boundary waits for an answer at most.
        open_timeout_s: How long the beginning of an attempt does, where the controller is silent; one that is
            known to be away is not waited for.
        ledger: The run's own ledger file, kept as a run without a controller keeps it.
        courier: Delivers; a thread of this process unless given.
    """

    def __init__(
        self,
        identity: Identity,
        transport: Transport,
        *,
        control_timeout_s: float = CONTROL_TIMEOUT_S,
        open_timeout_s: float = OPEN_TIMEOUT_S,
        ledger: Path | None = None,
        courier: Courier | None = None,
    ) -> None:
        self.ledger = ledger
        self._timeout_s = control_timeout_s
        self._open_timeout_s = open_timeout_s
        self._outbox = Outbox(identity, transport, None if ledger is None else RoundLines(ledger))
        self._courier = courier or ThreadCourier()
        self._lag = (0, 0)
        """A round, and how many were undelivered then."""

    @property
    def identity(self) -> Identity:
        """Who speaks."""
        return self._outbox.identity

    @property
    def directive(self) -> Directive | None:
        """What the controller asks for beside the plan."""
        return self._outbox.directive

    def resume(self, state: ScheduleState) -> None:
        """An attempt begins: tell the controller, and go on without it if it does not answer in time.

        This warms the line for the boundaries, which wait less.

        Raises:
            FencedError: a newer attempt of the run has begun.
        """
        if self.ledger is not None:
            open_ledger(self.ledger, state)
        self._courier.change(lambda: self._outbox.open(state))
        self._courier.start(self._outbox)
        self._courier.wait(lambda: self._outbox.is_idle or self._has_broken(), self._open_timeout_s)
        self._check_fence()
        if not self._outbox.is_idle:
            logger.warning(
                "no controller: job=%s; this run decides by itself until it answers", self.identity.job
            )

    def exchange(self, state: ScheduleState, report: RoundReport) -> tuple[ScheduleState, Plan]:
        """Decide on a round: with the controller where it answers in time, else alone.

        Raises:
            FencedError: a newer attempt of the run has begun.
        """
        self._check_fence()
        due = Due(state, report)
        if self._is_outrunning(report.round):
            self._courier.wait(lambda: self._outbox.is_idle or self._has_broken(), self._timeout_s)
        if self._outbox.is_idle:
            answer = self._ask(due)
            self._check_fence()
            if answer is not None:
                return self._decide_with(answer, state, report)
            is_queued = True
        else:
            is_queued = False
        following, plan = decide(state, report)
        encoded = encode_round(self.identity.attempt, report, plan, following)
        self._keep(encoded.line)

        def settle() -> None:
            due.plan_digest, due.following = encoded.plan_digest, following
            if not is_queued:
                due.is_given_up = True
                self._outbox.put(due)

        self._courier.change(settle)
        return following, plan

    def note(self, kind: str, data: Mapping[str, Any]) -> None:
        """Tell the controller that something happened; delivered in the background."""
        self._courier.change(lambda: self._outbox.note(kind, data))

    def flush(self, timeout_s: float = FLUSH_TIMEOUT_S) -> bool:
        """Wait until everything was delivered, at the end of a run; False where that takes too long."""
        is_over = self._courier.wait(
            lambda: self._outbox.is_empty or self._outbox.fenced is not None, timeout_s
        )
        if not is_over:
            logger.error(
                "not delivered within %g s: job=%s; the run's own ledger has every round",
                timeout_s,
                self.identity.job,
            )
        return is_over

    def close(self) -> None:
        """End the delivery."""
        self._courier.close()

    def _ask(self, due: Due) -> Answer | None:
        """The answer, where it comes in time; otherwise the round is given up, in one step with looking."""
        self._courier.change(lambda: self._outbox.put(due))
        self._courier.wait(
            lambda: due.answer is not None or due.has_failed or self._outbox.fenced is not None,
            self._timeout_s,
        )

        def give_up() -> None:
            due.is_given_up = due.answer is None

        self._courier.change(give_up)
        if due.answer is None:
            logger.warning(
                "no answer: round=%d; deciding here until the controller answers again", due.report.round
            )
        return due.answer

    def _decide_with(
        self, answer: Answer, state: ScheduleState, report: RoundReport
    ) -> tuple[ScheduleState, Plan]:
        report = replace(report, commands=(*report.commands, *answer.commands))
        following, plan = decide(state, report)
        encoded = encode_round(self.identity.attempt, report, plan, following)
        self._keep(encoded.line)
        if encoded.plan_digest != answer.plan_digest:
            logger.error(
                "controller decided otherwise: round=%d here=%s there=%s; this run's own plan counts",
                report.round,
                encoded.plan_digest,
                answer.plan_digest,
            )
        return following, plan

    def _keep(self, line: str) -> None:
        if self.ledger is not None:
            append_line(self.ledger, line)

    def _is_outrunning(self, round: int) -> bool:
        """The controller answers, and yet rounds end faster than they are delivered: it would never be asked
        again, and no operator heard. Without a controller nobody waits for it."""
        oldest = self._outbox.oldest_round
        if oldest is None:
            self._lag = (round, 0)
        if oldest is None or self._outbox.is_broken or round - self._lag[0] < CATCH_UP_ROUNDS:
            return False
        before, self._lag = self._lag[1], (round, round - oldest)
        return round - oldest >= before

    def _has_broken(self) -> bool:
        return self._outbox.is_broken or self._outbox.fenced is not None

    def _check_fence(self) -> None:
        if self._outbox.fenced is not None:
            raise FencedError(
                f"attempt {self.identity.attempt} of job {self.identity.job} is over: {self._outbox.fenced}"
            )


class ThreadCourier:
    """Delivers in a thread of its own, so that a call that hangs holds up nobody.

    Args:
        retry_s: Wait after a failed call; doubles up to ``max_retry_s``.
    """

    def __init__(self, retry_s: float = 0.25, max_retry_s: float = 2.0) -> None:
        self._retry_s = retry_s
        self._max_retry_s = max_retry_s
        self._has_changed = threading.Condition()
        self._is_closed = False
        self._thread: threading.Thread | None = None

    def start(self, outbox: Outbox) -> None:
        """Begin the thread, once."""
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._run, args=(outbox,), name="hdet-control", daemon=True
            )
            self._thread.start()
        self.change(lambda: None)

    def change(self, act: Callable[[], None]) -> None:
        """Do something to the outbox under the lock, and let the thread look."""
        with self._has_changed:
            act()
            self._has_changed.notify_all()

    def wait(self, is_over: Callable[[], bool], timeout_s: float) -> bool:
        """Wait for what the thread does."""
        with self._has_changed:
            return self._has_changed.wait_for(is_over, timeout_s)

    def close(self) -> None:
        """Let the thread end after the call that is under way; nobody waits for it."""
        self._is_closed = True
        self.change(lambda: None)

    def _run(self, outbox: Outbox) -> None:
        wait_s = self._retry_s
        while not self._is_closed:
            with self._has_changed:
                self._has_changed.wait_for(lambda: self._is_closed or outbox.has_work)
                if not outbox.has_work:
                    return  # closed
            if deliver_next(outbox, self.change):
                wait_s = self._retry_s
                continue
            with self._has_changed:
                self._has_changed.wait_for(lambda: self._is_closed, wait_s)
            wait_s = min(2 * wait_s, self._max_retry_s)


def deliver_next(outbox: Outbox, change: Callable[[Callable[[], None]], None]) -> bool:
    """Make an outbox's next call.

    Args:
        outbox: One that has work.
        change: Does something to it under a lock.

    Returns:
        Whether it was acknowledged.
    """

    def fence(message: str) -> None:
        outbox.fenced = message

    try:
        settle = outbox.deliver()
    except FencedByController as error:
        text = str(error)
        change(lambda: fence(text))
    except ControlUnavailable as error:
        logger.info("controller unavailable: %s", error)
        change(outbox.broke)
    except Exception:  # the thread must outlive whatever a call raises
        logger.exception("a call to the controller failed")
        change(outbox.broke)
    else:
        change(settle)
        return True
    return False
