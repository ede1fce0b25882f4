"""What happens to a job next, from what the database says, what Ray says, and the clock. Pure.

`Jobs` commits a `Step` with its event first and acts on it afterwards. So whatever moment the controller
dies at, the same function, asked again, goes on from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from hdet_service.starter import DriverState, DriverStatus
from hdet_service.states import Reason, State


class Wanted(StrEnum):
    """Where an operator wants a job."""

    PAUSED = "paused"
    DRAINED = "drained"
    """Paused until the end of a drain."""
    CANCELED = "canceled"
    ROLLED_BACK = "rolled_back"


PAUSES = frozenset({Wanted.PAUSED, Wanted.DRAINED})


class Effect(StrEnum):
    """What is done once the step is committed."""

    START = "start"
    STOP = "stop"


class Ending(StrEnum):
    """How a driver ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    """It said why; trying again would not help."""
    GAVE_UP = "gave_up"
    """A program of the user's own ended with an error: final, unless it was being stopped just then."""
    LOST = "lost"
    """It is gone without a word, or with a failure that may pass: worth another try."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The end of a driver, from its note, its exit code, or its absence."""

    ending: Ending
    reason: Reason
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A job, as far as its life goes."""

    state: State
    reason: Reason
    message: str
    wanted: Wanted | None
    entered_s: float
    """When it entered its state."""
    max_failures: int
    failures: int
    step: int
    total_steps: int | None
    last_report_s: float | None
    """Newest report, or when the controller started, if that is later."""
    usual_round_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """From the settings, in seconds."""

    retry_delay_s: float
    retry_delay_max_s: float
    pause_timeout_s: float
    silence_timeout_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A transition, and what to do once it is committed. No state: only the effect, or only the message."""

    state: State | None = None
    reason: Reason | None = None
    message: str = ""
    effect: Effect | None = None
    failures: int | None = None
    not_before_s: float | None = None
    keeps_wanted: bool = False
    is_retry: bool = False
    only_message: bool = False
    """The same standing in newer words: no transition and no event."""
    replicas: int | None = None
    """How many replicas train in the new state, where that is known."""


def next_step(
    job: Standing, driver: DriverState | None, ending: Outcome | None, now_s: float, bounds: Bounds
) -> Step | None:
    """What follows for a job that has a driver, or should have one.

    Args:
        job: As committed.
        driver: What Ray says of its newest submission; None: Ray doesn't know it.
        ending: How that driver ended, where ``driver`` has (`outcome_of`).
        now_s: Seconds since the epoch.
        bounds: Of waiting.

    Returns:
        The step, or None: nothing changes.
    """
    if job.state not in (State.STARTING, State.RUNNING, State.DEGRADED, State.STOPPING):
        return None
    if driver is None:
        return _without_driver(job, now_s, bounds)
    if driver.status.has_ended:
        return settle(job, ending or _DRIVER_LOST, now_s, bounds)
    if job.state is State.STOPPING:
        return _stopping(job, now_s, bounds)
    return _silence(job, now_s, bounds)


def settle(job: Standing, outcome: Outcome, now_s: float, bounds: Bounds) -> Step:
    """Where a job goes whose driver has ended, or has said that it does."""
    if outcome.ending is Ending.COMPLETED and _is_complete(job):
        return Step(state=State.SUCCEEDED, reason=Reason.COMPLETED, message=outcome.message)
    if job.wanted is Wanted.CANCELED:
        return Step(state=State.CANCELED, reason=Reason.CANCELED, message=job.message)
    if outcome.ending is Ending.FAILED:
        return Step(state=State.FAILED, reason=outcome.reason, message=outcome.message)
    if job.wanted in PAUSES:
        return Step(
            state=State.PAUSED,
            reason=Reason.PAUSED,
            message=job.message,
            keeps_wanted=job.wanted is Wanted.DRAINED,
        )
    if job.wanted is Wanted.ROLLED_BACK:
        return Step(state=State.QUEUED, reason=Reason.WAITING_FOR_SLOT, message=job.message)
    if outcome.ending is Ending.GAVE_UP:
        return Step(state=State.FAILED, reason=outcome.reason, message=outcome.message)
    return _retry(job, outcome, now_s, bounds)


def outcome_of(driver: DriverState, *, meaning: Outcome | None, last_line: str) -> Outcome:
    """How a driver ended that left no note.

    Args:
        driver: As Ray has it; it has ended.
        meaning: What its exit code says, where it says something.
        last_line: Of its output.
    """
    if driver.status is DriverStatus.SUCCEEDED:
        return Outcome(ending=Ending.COMPLETED, reason=Reason.COMPLETED)
    if driver.is_setup_failure:
        return Outcome(
            ending=Ending.FAILED,
            reason=Reason.ENTRYPOINT_ERROR,
            message=f"its runtime environment could not be made: {_one_line(driver.message)}",
        )
    if meaning is not None and driver.status is not DriverStatus.STOPPED:
        message = "; last line: ".join(filter(None, (meaning.message, last_line)))
        return Outcome(ending=meaning.ending, reason=meaning.reason, message=message)
    how = "stopped from outside" if driver.status is DriverStatus.STOPPED else _how(driver)
    return Outcome(
        ending=Ending.LOST,
        reason=Reason.DRIVER_LOST,
        message=f"its driver was {how}" + (f"; last line: {last_line}" if last_line else ""),
    )


def delay_s(failures: int, bounds: Bounds) -> float:
    """Wait before the retry that follows the ``failures``-th failure: doubles each time."""
    return min(bounds.retry_delay_max_s, bounds.retry_delay_s * 2.0 ** min(max(0, failures - 1), 30))


_DRIVER_LOST = Outcome(ending=Ending.LOST, reason=Reason.DRIVER_LOST, message="its driver is gone")
_HEAD_LOST = Outcome(
    ending=Ending.LOST,
    reason=Reason.HEAD_LOST,
    message="Ray's head went away, and the driver with it",
)


def _without_driver(job: Standing, now_s: float, bounds: Bounds) -> Step:
    if job.state is State.STARTING and job.reason is Reason.STARTING and job.wanted is None:
        # Committed, but Ray may never have heard of it: starting by the same id twice is starting once.
        return Step(effect=Effect.START)
    return settle(job, _HEAD_LOST, now_s, bounds)


def _stopping(job: Standing, now_s: float, bounds: Bounds) -> Step | None:
    if job.wanted not in PAUSES or job.reason is not Reason.PAUSING:
        return Step(effect=Effect.STOP)  # again, in case that the request was lost
    if job.message.startswith(PAUSED_AT):
        return Step(effect=Effect.STOP)
    if now_s - job.entered_s <= bounds.pause_timeout_s:
        return None
    return Step(
        state=State.STOPPING,
        reason=Reason.PAUSING,
        message=f"{PAUSED_AT} its newest checkpoint: the driver did not pause within "
        f"{bounds.pause_timeout_s:g} s, so it is stopped, and what it did since that checkpoint is repeated",
        effect=Effect.STOP,
        keeps_wanted=True,
    )


PAUSED_AT = "Paused at"
"""Opens the message of a job that is stopped because its checkpoint is safe."""


def _silence(job: Standing, now_s: float, bounds: Bounds) -> Step | None:
    """Silence alone means little: a long round is silent too. So both bounds have to be passed."""
    if job.state is not State.RUNNING or job.last_report_s is None or job.usual_round_s is None:
        return None
    bound_s = max(bounds.silence_timeout_s, 10 * job.usual_round_s)
    silent_s = now_s - job.last_report_s
    if silent_s <= bound_s:
        return None
    return Step(
        state=State.DEGRADED,
        reason=Reason.REPLICA_LOST,
        message=f"no report for {silent_s:.0f} s, where one comes every {job.usual_round_s:.1f} s",
        keeps_wanted=True,
    )


def _is_complete(job: Standing) -> bool:
    """A driver ends with 0 after a pause as after the last step: only the steps tell.

    One that was canceled may have paused just before. Where the steps are not known, its word counts.
    """
    if job.total_steps is None:
        return job.wanted not in PAUSES
    return job.step >= job.total_steps or not (job.wanted in PAUSES or job.wanted is Wanted.CANCELED)


def _retry(job: Standing, outcome: Outcome, now_s: float, bounds: Bounds) -> Step:
    failures = job.failures + 1
    if failures > job.max_failures:
        reason = Reason.RETRIES_EXHAUSTED if job.max_failures else outcome.reason
        text = f"{outcome.message} (failure {failures}; max_failures={job.max_failures})"
        return Step(state=State.FAILED, reason=reason, message=text, failures=failures)
    wait_s = delay_s(failures, bounds)
    return Step(
        state=State.QUEUED,
        reason=outcome.reason,
        message=f"{outcome.message}; retry {failures} of {job.max_failures} in {wait_s:g} s, "
        "from the newest checkpoint",
        failures=failures,
        not_before_s=now_s + wait_s,
        is_retry=True,
    )


def _how(driver: DriverState) -> str:
    if driver.exit_code is None:
        return f"lost ({_one_line(driver.message)})" if driver.message else "lost"
    # A shell reports a process that a signal killed as 128 + its number; Popen as its negative.
    signal = -driver.exit_code if driver.exit_code < 0 else driver.exit_code - 128
    if 0 < signal < 65 and (driver.exit_code < 0 or driver.exit_code > 128):
        return f"killed by signal {signal}"
    return f"ended with exit code {driver.exit_code}"


def _one_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:500] if lines else ""
