"""The life of a job as a pure function: for every standing and every word of Ray, a step that is allowed."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from hdet_service.admission import Waiting, admitted, in_order
from hdet_service.reconcile import (
    PAUSED_AT,
    Bounds,
    Effect,
    Ending,
    Outcome,
    Standing,
    Wanted,
    delay_s,
    next_step,
    outcome_of,
    settle,
)
from hdet_service.starter import DriverState, DriverStatus
from hdet_service.states import ACTIVE, TERMINAL, Reason, State, may_follow

BOUNDS = Bounds(retry_delay_s=5, retry_delay_max_s=300, pause_timeout_s=120, silence_timeout_s=60)
RUNNING = Standing(
    state=State.RUNNING,
    reason=Reason.RUNNING,
    message="",
    wanted=None,
    entered_s=0.0,
    max_failures=3,
    failures=0,
    step=10,
    total_steps=100,
    last_report_s=None,
    usual_round_s=None,
)

WANTED_IN = {
    State.STOPPING: [*Wanted],
    State.STARTING: [None],
    State.RUNNING: [None],
    State.DEGRADED: [None],
}


@st.composite
def standings(draw: st.DrawFn) -> Standing:
    state = draw(st.sampled_from(sorted(ACTIVE)))
    reasons = {
        State.STARTING: [Reason.STARTING, Reason.WAITING_FOR_RESOURCES],
        State.STOPPING: [Reason.CANCELING, Reason.PAUSING],
    }
    return Standing(
        state=state,
        reason=draw(st.sampled_from(reasons.get(state, [Reason.RUNNING]))),
        message=draw(st.sampled_from(["", f"{PAUSED_AT} round 3"])),
        wanted=draw(st.sampled_from(WANTED_IN[state])),
        entered_s=draw(st.floats(0, 1000)),
        max_failures=draw(st.integers(0, 3)),
        failures=draw(st.integers(0, 4)),
        step=draw(st.integers(0, 100)),
        total_steps=draw(st.sampled_from([None, 100])),
        last_report_s=draw(st.sampled_from([None, 0.0, 900.0])),
        usual_round_s=draw(st.sampled_from([None, 1.0, 50.0])),
    )


drivers = st.none() | st.builds(
    DriverState, status=st.sampled_from(DriverStatus), exit_code=st.sampled_from([None, 0, 1, 91, -9, 137])
)
outcomes = st.builds(
    Outcome,
    ending=st.sampled_from(Ending),
    reason=st.sampled_from([Reason.DRIVER_LOST, Reason.SEARCH_FAILED]),
)


@given(job=standings(), driver=drivers, now_s=st.floats(0, 2000))
def test_no_step_leaves_the_graph_of_states(job: Standing, driver: DriverState | None, now_s: float) -> None:
    ending = None
    if driver is not None and driver.status.has_ended:
        ending = outcome_of(driver, meaning=None, last_line="")
    step = next_step(job, driver, ending, now_s, BOUNDS)
    if step is not None and step.state is not None:
        assert step.reason is not None
        assert may_follow(job.state, step.state)


@given(job=standings(), outcome=outcomes, now_s=st.floats(0, 2000))
def test_a_driver_that_has_ended_never_leaves_its_job_active(
    job: Standing, outcome: Outcome, now_s: float
) -> None:
    step = settle(job, outcome, now_s, BOUNDS)
    assert step.state in TERMINAL | {State.QUEUED, State.PAUSED}


@given(job=standings(), now_s=st.floats(0, 2000))
def test_a_driver_that_has_ended_is_never_started_or_stopped(job: Standing, now_s: float) -> None:
    ended = DriverState(status=DriverStatus.FAILED, exit_code=1)
    step = next_step(job, ended, outcome_of(ended, meaning=None, last_line=""), now_s, BOUNDS)
    assert step is not None
    assert step.effect is None


@given(job=standings())
def test_what_is_canceled_never_comes_back(job: Standing) -> None:
    canceled = replace(job, state=State.STOPPING, wanted=Wanted.CANCELED, reason=Reason.CANCELING)
    for ending in Ending:
        step = settle(canceled, Outcome(ending=ending, reason=Reason.DRIVER_LOST), 0.0, BOUNDS)
        assert step.state in (State.CANCELED, State.SUCCEEDED)


def test_failures_are_never_more_than_max_failures_and_one() -> None:
    job, lost = RUNNING, Outcome(ending=Ending.LOST, reason=Reason.DRIVER_LOST)
    for _ in range(3):
        step = settle(job, lost, 0.0, BOUNDS)
        assert step.state is State.QUEUED
        assert step.failures is not None
        job = replace(job, failures=step.failures)
    assert settle(job, lost, 0.0, BOUNDS).state is State.FAILED


def test_a_pause_that_is_asked_for_at_the_last_step_is_the_end() -> None:
    job = replace(RUNNING, state=State.STOPPING, reason=Reason.PAUSING, wanted=Wanted.PAUSED, step=100)
    done = Outcome(ending=Ending.COMPLETED, reason=Reason.COMPLETED)
    assert settle(job, done, 0.0, BOUNDS).state is State.SUCCEEDED
    assert settle(replace(job, step=99), done, 0.0, BOUNDS).state is State.PAUSED


def test_a_submission_that_ray_may_never_have_got_is_handed_over_again() -> None:
    job = replace(RUNNING, state=State.STARTING, reason=Reason.STARTING)
    step = next_step(job, None, None, 0.0, BOUNDS)
    assert step is not None
    assert (step.state, step.effect) == (None, Effect.START)


def test_waits_double_up_to_their_bound() -> None:
    waits = [delay_s(failures, BOUNDS) for failures in range(1, 12)]
    assert waits[:4] == [5, 10, 20, 40]
    assert max(waits) == waits[-1] == 300
    assert delay_s(10_000, BOUNDS) == 300


waiting = st.builds(
    Waiting,
    id=st.text("0123456789", min_size=3, max_size=3),
    priority=st.integers(-2, 2),
    not_before_s=st.sampled_from([None, 50.0, 150.0, 1e9]),
)


@given(
    queue=st.lists(waiting, max_size=8, unique_by=lambda job: job.id),
    num_running=st.integers(0, 5),
    max_running=st.integers(1, 5),
)
def test_slots_go_to_the_first_in_order_that_are_due(
    queue: list[Waiting], num_running: int, max_running: int
) -> None:
    chosen = admitted(
        queue,
        num_running=num_running,
        max_running=max_running,
        now_s=100.0,
        max_delay_s=300.0,
        is_draining=False,
    )
    assert len(chosen) <= max(0, max_running - num_running)
    due = [job.id for job in in_order(queue) if job.not_before_s != 150.0]
    assert chosen == due[: len(chosen)]
    assert len(chosen) == min(len(due), max(0, max_running - num_running))


@given(queue=st.lists(waiting, max_size=5))
def test_a_drain_admits_nobody(queue: list[Waiting]) -> None:
    assert not admitted(queue, num_running=0, max_running=9, now_s=1e10, max_delay_s=300.0, is_draining=True)
