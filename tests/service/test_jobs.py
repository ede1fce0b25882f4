"""Jobs from submission to their end, with a Ray that only records and a clock that the test moves."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from sqlalchemy.orm import Session

from hdet_service.problems import Conflict, Forbidden, IdempotencyMismatch, Invalid, NotFound
from hdet_service.schemas import JobSpec
from hdet_service.starter import DriverState, DriverStatus, Launch, LaunchRefusedError, StarterError
from hdet_service.store.models import Job
from tests.service.driven import BOSS, SAM, SPEC, Driven


@pytest.fixture
def driven(tmp_path: Path) -> Iterator[Driven]:
    with Driven(tmp_path, max_running_jobs=2, retry_delay_s=5.0) as service:
        yield service


def test_a_job_goes_from_the_queue_to_its_end(driven: Driven) -> None:
    job_id = driven.submit_running()
    assert driven.note(job_id, "finished", outcome="succeeded") == "ok"
    assert driven.state(job_id) == ("SUCCEEDED", "Completed")
    assert driven.transitions(job_id) == ["QUEUED", "STARTING", "STARTING", "RUNNING", "SUCCEEDED"]
    assert driven.job(job_id).finished_s == driven.now_s


def test_a_driver_is_told_its_job_by_its_environment(driven: Driven) -> None:
    job_id = driven.submit(config={"preset": "tiny"}, runtime_env={"env_vars": {"A": "b"}})
    driven.tick()
    (launch,) = driven.starter.launches
    assert launch.command == "python -m hdet_ray.train.driver"
    assert launch.env["HDET_JOB_ID"] == job_id
    assert launch.env["HDET_CONTROL"] == "hdet/hdet-controller"
    assert launch.env["HDET_SUBMISSION"] == "1"
    assert launch.env["HDET_STORAGE_PATH"] == str(driven.home / "runs")
    assert launch.env["A"] == "b"
    assert "HDET_RESUME_ROUND" not in launch.env
    assert JobSpec.model_validate_json(launch.env["HDET_JOB_SPEC"]).config == {"preset": "tiny"}


def test_a_command_runs_as_it_is(driven: Driven) -> None:
    driven.submit(entrypoint="python train.py --x")
    driven.tick()
    assert driven.starter.launches[0].command == "python train.py --x"


def test_a_users_driver_that_ends_with_0_has_succeeded_without_a_word(driven: Driven) -> None:
    job_id = driven.submit(entrypoint="python train.py")
    driven.tick()
    driven.starter.end(driven.sid(job_id), exit_code=0)
    driven.tick()
    assert driven.state(job_id) == ("SUCCEEDED", "Completed")


# ---- admission


def test_higher_priority_starts_first_then_who_came_first(driven: Driven) -> None:
    low, first, second, high = (driven.submit(priority=p) for p in (-1, 0, 0, 5))
    driven.tick()
    assert {launch.job_id for launch in driven.starter.launches} == {high, first}
    for job_id in (high, first):
        driven.note(job_id, "finished", outcome="succeeded")
        driven.starter.end(driven.sid(job_id))
    driven.tick()
    assert {launch.job_id for launch in driven.starter.launches[2:]} == {second, low}


def test_one_free_slot_goes_to_the_highest_priority_then_to_the_oldest(tmp_path: Path) -> None:
    with Driven(tmp_path, max_running_jobs=1) as driven:
        jobs = {driven.submit(priority=p): p for p in (-1, 0, 0, 5)}
        for _ in jobs:
            driven.tick()
            driven.note(driven.starter.launches[-1].job_id, "finished", outcome="succeeded")
            driven.starter.end(driven.starter.launches[-1].submission_id)
        started = [launch.job_id for launch in driven.starter.launches]
        assert started == sorted(jobs, key=lambda job_id: (-jobs[job_id], job_id))


def test_no_more_run_than_max_running_jobs(driven: Driven) -> None:
    for _ in range(5):
        driven.submit()
    driven.tick()
    driven.tick()
    assert len(driven.starter.launches) == 2


def test_a_preview_says_whether_it_would_start_and_stores_nothing(driven: Driven) -> None:
    spec = JobSpec.model_validate(SPEC)
    assert driven.run(driven.controller.jobs.preview(spec, SAM))["reason"] == "Submitted"
    for _ in range(3):
        driven.submit()
    driven.tick()
    shown = driven.run(driven.controller.jobs.preview(spec, SAM))
    assert (shown["reason"], shown["queue"]["ahead"], shown["queue"]["running"]) == ("WaitingForSlot", 1, 2)
    assert len(driven.run(driven.controller.jobs.list(limit=100))) == 3


def test_one_key_is_one_job_and_another_body_is_refused(driven: Driven) -> None:
    spec = JobSpec.model_validate(SPEC)
    jobs = driven.controller.jobs
    first, is_new = driven.run(jobs.submit(spec, SAM, "k", "digest"))
    again, is_new_again = driven.run(jobs.submit(spec, SAM, "k", "digest"))
    assert (first.id, is_new, is_new_again) == (again.id, True, False)
    with pytest.raises(IdempotencyMismatch, match="another body"):
        driven.run(jobs.submit(spec, SAM, "k", "other"))
    other, is_new = driven.run(jobs.submit(spec, BOSS, "k", "digest"))
    assert is_new
    assert other.id != first.id


def test_an_entrypoint_off_the_allowlist_is_refused(tmp_path: Path) -> None:
    with Driven(tmp_path, entrypoint_allowlist=("byte_*", "mine.*:loop")) as driven:
        driven.submit(entrypoint="mine.models:loop")
        with pytest.raises(Forbidden, match="not on this service's list"):
            driven.submit(entrypoint="digits")


def test_a_package_that_was_never_uploaded_is_refused(driven: Driven) -> None:
    with pytest.raises(Invalid, match="never uploaded"):
        driven.submit(runtime_env={"working_dir": "0" * 64})


# ---- failures


def test_a_lost_driver_is_started_again_after_a_wait_that_doubles(driven: Driven) -> None:
    job_id = driven.submit_running(max_failures=2)
    for failures, wait_s in ((1, 5.0), (2, 10.0)):
        driven.starter.end(driven.sid(job_id), exit_code=-9)
        driven.tick()
        assert driven.state(job_id) == ("QUEUED", "DriverLost")
        assert "killed by signal 9" in driven.job(job_id).message
        driven.tick(wait_s - 0.1)
        assert len(driven.starter.launches) == failures
        driven.tick(0.2)
        assert len(driven.starter.launches) == failures + 1
    driven.note(job_id, "imported")
    driven.starter.end(driven.sid(job_id), exit_code=-9)
    driven.tick()
    assert driven.state(job_id) == ("FAILED", "RetriesExhausted")
    assert len(driven.events(job_id, "retry")) == 2


def test_without_retries_the_reason_is_the_loss_itself(driven: Driven) -> None:
    job_id = driven.submit_running(max_failures=0)
    driven.starter.end(driven.sid(job_id), exit_code=1)
    driven.tick()
    assert driven.state(job_id) == ("FAILED", "DriverLost")


@pytest.mark.parametrize(
    "reason", ["EntrypointError", "SearchFailed", "RollbackLimit", "CheckpointError", "NonFinite"]
)
def test_a_failure_that_would_come_again_is_not_tried_again(driven: Driven, reason: str) -> None:
    job_id = driven.submit_running()
    driven.note(job_id, "finished", outcome="failed", reason=reason, message="because")
    assert driven.state(job_id) == ("FAILED", reason)
    assert driven.job(job_id).message == "because"


@pytest.mark.parametrize(
    ("exit_code", "reason"),
    [(91, "EntrypointError"), (92, "SearchFailed"), (93, "RollbackLimit"), (96, "RetriesExhausted")],
)
def test_the_exit_code_says_why_when_nobody_heard_the_note(
    driven: Driven, exit_code: int, reason: str
) -> None:
    job_id = driven.submit_running()
    driven.starter.end(driven.sid(job_id), exit_code=exit_code)
    driven.tick()
    assert driven.state(job_id) == ("FAILED", reason)


@pytest.mark.parametrize("exit_code", [1, 2, 91, 127])
def test_a_command_that_says_it_failed_is_believed_and_not_tried_again(
    driven: Driven, exit_code: int
) -> None:
    job_id = driven.submit(entrypoint="python train.py")
    driven.tick()
    driven.starter.end(driven.sid(job_id), exit_code=exit_code)
    driven.tick()
    assert driven.state(job_id) == ("FAILED", "EntrypointError")
    assert driven.job(job_id).message == f"its command ended with exit code {exit_code}"
    assert len(driven.starter.launches) == 1


@pytest.mark.parametrize("exit_code", [-9, 137, 143])
def test_a_command_that_a_signal_ended_is_lost_and_tried_again(driven: Driven, exit_code: int) -> None:
    job_id = driven.submit(entrypoint="python train.py")
    driven.tick()
    driven.starter.end(driven.sid(job_id), exit_code=exit_code)
    driven.tick()
    assert driven.state(job_id) == ("QUEUED", "DriverLost")


def test_a_command_that_ends_with_an_error_because_it_was_paused_has_paused(driven: Driven) -> None:
    job_id = driven.submit(entrypoint="python train.py")
    driven.tick()
    driven.open(job_id)
    driven.run(driven.controller.jobs.pause(job_id, BOSS))
    driven.starter.end(driven.sid(job_id), exit_code=1)
    driven.tick()
    assert driven.state(job_id) == ("PAUSED", "Paused")


def test_a_driver_whose_run_went_on_elsewhere_is_no_verdict_on_the_job(driven: Driven) -> None:
    job_id = driven.submit_running()
    driven.note(job_id, "finished", outcome="failed", reason="DriverLost", message="attempt 1 is over")
    assert driven.state(job_id) == ("QUEUED", "DriverLost")


def test_a_runtime_environment_that_cannot_be_made_fails_the_job(driven: Driven) -> None:
    job_id = driven.submit()
    driven.tick()
    driven.starter.drivers[driven.sid(job_id)] = DriverState(
        status=DriverStatus.FAILED, message="pip failed\nno such wheel", is_setup_failure=True
    )
    driven.tick()
    assert driven.state(job_id) == ("FAILED", "EntrypointError")
    assert "no such wheel" in driven.job(job_id).message


def test_a_launch_that_ray_refuses_fails_the_job(driven: Driven) -> None:
    job_id = driven.submit()
    driven.starter.refusals[job_id] = LaunchRefusedError("package is gone")
    driven.tick()
    assert driven.state(job_id) == ("FAILED", "EntrypointError")
    assert driven.job(job_id).message == "package is gone"


def test_a_start_that_fails_for_now_is_tried_again(driven: Driven) -> None:
    job_id = driven.submit()
    driven.starter.refusals[job_id] = StarterError("busy")
    driven.tick()
    assert driven.state(job_id) == ("STARTING", "Starting")
    del driven.starter.refusals[job_id]
    driven.tick()
    assert [launch.submission for launch in driven.starter.launches] == [1]


def test_a_job_that_can_not_be_taken_on_keeps_no_other_from_it(driven: Driven) -> None:
    broken, other = driven.submit_running(), driven.submit_running()

    def spoil(session: Session) -> None:
        session.get_one(Job, broken).reason = "OfANewerRelease"

    driven.controller.store.write_sync(spoil)
    driven.starter.end(driven.sid(broken))
    driven.starter.end(driven.sid(other), exit_code=91)
    driven.tick()
    assert driven.state(other) == ("FAILED", "EntrypointError")
    assert driven.job(broken).state == "RUNNING"


def test_a_first_look_that_fails_does_not_end_the_service(
    driven: Driven, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> NoReturn:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(driven.starter, "states", fail)
    driven.run(driven.controller.start())


def test_a_start_that_always_fails_whatever_with_counts_as_a_lost_driver(driven: Driven) -> None:
    job_id = driven.submit(max_failures=0)
    driven.starter.refusals[job_id] = ZeroDivisionError("a fault of ours")
    driven.tick()
    assert driven.state(job_id) == ("STARTING", "Starting")
    for _ in range(5):
        driven.tick()
    assert driven.state(job_id) == ("FAILED", "DriverLost")
    assert "ZeroDivisionError: a fault of ours" in driven.job(job_id).message


def test_a_ray_that_is_silent_costs_no_job_anything(driven: Driven) -> None:
    job_id = driven.submit_running()
    driven.starter.is_up = False
    driven.tick(1000)
    assert driven.state(job_id) == ("RUNNING", "Running")


def test_a_new_head_that_knows_no_driver_means_head_lost_and_a_retry(driven: Driven) -> None:
    job_id = driven.submit_running()
    driven.starter.drivers.clear()
    driven.tick()
    assert driven.state(job_id) == ("QUEUED", "HeadLost")
    driven.tick(6)
    assert [launch.submission for launch in driven.starter.launches] == [1, 2]


def test_a_driver_that_still_ends_is_waited_for_before_the_next_starts(driven: Driven) -> None:
    job_id = driven.submit_running()
    sid = driven.sid(job_id)
    driven.note(job_id, "finished", outcome="lost", message="bad luck")
    assert driven.state(job_id) == ("QUEUED", "DriverLost")
    driven.tick(10)
    assert len(driven.starter.launches) == 1
    driven.starter.end(sid, exit_code=1)
    driven.tick(1)
    assert len(driven.starter.launches) == 2


def test_an_older_drivers_words_are_not_listened_to(driven: Driven) -> None:
    job_id = driven.submit_running()
    driven.starter.end(driven.sid(job_id), exit_code=1)
    driven.tick()
    driven.tick(6)
    assert driven.note(job_id, "finished", submission=1, outcome="succeeded") == "fenced"
    assert driven.state(job_id) == ("STARTING", "Starting")


def test_fewer_replicas_than_asked_for_are_degraded_until_all_are_there(driven: Driven) -> None:
    job_id = driven.submit_running(replicas={"min": 1, "max": 2})
    driven.open(job_id, attempt=2, num_replicas=1)
    job = driven.job(job_id)
    assert (job.state, job.reason, job.replicas_present) == ("DEGRADED", "Resizing", 1)
    assert job.message.startswith("1 of 2 replicas train")
    driven.open(job_id, attempt=3, num_replicas=2)
    assert driven.state(job_id) == ("RUNNING", "Running")
    driven.note(job_id, "lost", message="1 of the workers failed", ranks=[1])
    driven.open(job_id, attempt=4, num_replicas=1)
    job = driven.job(job_id)
    assert (job.state, job.reason, job.replicas_present) == ("DEGRADED", "ReplicaLost", 1)


def test_lost_workers_show_as_degraded_until_the_next_attempt(driven: Driven) -> None:
    job_id = driven.submit_running(max_failures=3)
    driven.note(job_id, "lost", message="1 of the workers failed", ranks=[1])
    job = driven.job(job_id)
    assert (job.state, job.reason, job.replicas_present, job.failures) == ("DEGRADED", "ReplicaLost", 0, 1)
    driven.open(job_id, attempt=2)
    job = driven.job(job_id)
    assert (job.state, job.replicas_present) == ("RUNNING", 2)
    driven.starter.end(driven.sid(job_id), exit_code=-9)
    driven.tick()
    driven.tick(60)
    spec = JobSpec.model_validate_json(driven.starter.launches[-1].env["HDET_JOB_SPEC"])
    assert spec.max_failures == 1  # two of three are used up: one by Ray's restart, one by ours


def test_a_loss_that_is_heard_of_after_the_group_is_back_degrades_nothing(driven: Driven) -> None:
    job_id = driven.submit_running()
    driven.now_s += 10
    driven.open(job_id, attempt=2)
    driven.note(job_id, "lost", message="1 of the workers failed", at_s=driven.now_s - 5)
    job = driven.job(job_id)
    assert (job.state, job.failures) == ("RUNNING", 1)


# ---- cancel, pause, resume, rollback, delete


def test_cancel_stops_the_driver_and_doing_it_twice_is_doing_it_once(driven: Driven) -> None:
    job_id = driven.submit_running()
    cancel = driven.controller.jobs.cancel
    assert driven.run(cancel(job_id, SAM, "enough")).state == "STOPPING"
    version = driven.run(cancel(job_id, SAM)).version
    assert version == driven.job(job_id).version
    driven.tick()
    driven.tick()
    assert driven.state(job_id) == ("CANCELED", "Canceled")
    assert driven.job(job_id).message == "Canceled by sam: enough"
    assert driven.run(cancel(job_id, SAM)).state == "CANCELED"
    assert len(driven.events(job_id, "audit")) == 2  # submit and cancel


def test_a_job_in_the_queue_is_canceled_at_once(driven: Driven) -> None:
    job_id = driven.submit()
    driven.run(driven.controller.jobs.cancel(job_id, SAM))
    driven.tick()
    assert driven.state(job_id) == ("CANCELED", "Canceled")
    assert not driven.starter.launches


def test_a_job_that_finished_before_it_could_be_stopped_has_succeeded(driven: Driven) -> None:
    job_id = driven.submit_running()

    def train_to_the_end(session: Session) -> None:
        job = session.get_one(Job, job_id)
        job.step = job.total_steps or 0

    driven.controller.store.write_sync(train_to_the_end)
    driven.run(driven.controller.jobs.cancel(job_id, SAM))
    driven.note(job_id, "finished", outcome="succeeded")
    assert driven.state(job_id) == ("SUCCEEDED", "Completed")


def test_a_job_that_is_canceled_while_it_pauses_is_canceled(driven: Driven) -> None:
    job_id = driven.submit_running()
    driven.run(driven.controller.jobs.pause(job_id, SAM))
    driven.run(driven.controller.jobs.cancel(job_id, SAM))
    driven.note(job_id, "finished", outcome="succeeded")
    assert driven.state(job_id) == ("CANCELED", "Canceled")


def test_pause_waits_for_the_checkpoint_then_stops_and_resume_goes_on(driven: Driven) -> None:
    job_id = driven.submit_running()
    jobs = driven.controller.jobs
    driven.run(jobs.pause(job_id, SAM))
    driven.tick()
    assert driven.state(job_id) == ("STOPPING", "Pausing")
    assert not driven.starter.stopped
    driven.note(job_id, "paused", round=7)
    driven.tick()
    driven.tick()
    assert driven.state(job_id) == ("PAUSED", "Paused")
    assert driven.job(job_id).message == "Paused at round 7"
    driven.tick(1000)
    assert len(driven.starter.launches) == 1
    assert driven.run(jobs.resume(job_id, SAM)).state == "QUEUED"
    driven.tick()
    assert [launch.submission for launch in driven.starter.launches] == [1, 2]


def test_a_driver_that_ends_by_itself_after_the_pause_is_paused_not_done(driven: Driven) -> None:
    job_id = driven.submit_running()
    driven.run(driven.controller.jobs.pause(job_id, SAM))
    driven.note(job_id, "finished", outcome="succeeded")
    assert driven.state(job_id) == ("PAUSED", "Paused")


def test_a_driver_that_does_not_pause_in_time_is_stopped_and_the_message_says_so(driven: Driven) -> None:
    job_id = driven.submit_running()
    driven.run(driven.controller.jobs.pause(job_id, SAM))
    driven.tick(119)
    assert driven.starter.stopped == []
    driven.tick(2)
    driven.tick()
    assert driven.state(job_id) == ("PAUSED", "Paused")
    assert "did not pause within 120 s" in driven.job(job_id).message


def test_a_clock_that_went_back_lets_no_pause_wait_for_longer(driven: Driven) -> None:
    job_id = driven.submit_running()
    driven.now_s -= 1000
    driven.run(driven.controller.jobs.pause(job_id, SAM))
    driven.tick(121)
    driven.tick()
    assert driven.state(job_id) == ("PAUSED", "Paused")


def test_a_job_that_still_stops_cannot_be_resumed(driven: Driven) -> None:
    job_id = driven.submit_running()
    driven.run(driven.controller.jobs.pause(job_id, SAM))
    with pytest.raises(Conflict, match="wait until it is PAUSED"):
        driven.run(driven.controller.jobs.resume(job_id, SAM))


def test_a_rollback_starts_another_driver_from_that_round(driven: Driven) -> None:
    job_id = driven.submit_running()
    revision = driven.job(job_id).revision
    driven.run(driven.controller.jobs.rollback(job_id, 0, BOSS, "too early"))
    driven.tick()
    driven.tick()
    driven.tick()
    launch = driven.starter.launches[-1]
    assert (launch.submission, launch.env["HDET_RESUME_ROUND"]) == (2, "0")
    assert driven.job(job_id).revision == revision + 1
    assert driven.job(job_id).failures == 0


def test_once_it_has_gone_back_its_newest_checkpoint_counts_again(driven: Driven) -> None:
    job_id = driven.submit_running()
    driven.run(driven.controller.jobs.rollback(job_id, 0, BOSS))
    saved = {"round": 3, "step": 30, "path": "checkpoint_3"}
    driven.note(job_id, "checkpoint", **saved)
    assert driven.job(job_id).resume_round == 0, "the driver that stops has saved once more"
    driven.starter.end(driven.sid(job_id), exit_code=-15)
    driven.tick()
    driven.tick()
    assert driven.starter.launches[-1].env["HDET_RESUME_ROUND"] == "0"
    driven.note(job_id, "imported")
    driven.open(job_id, attempt=2)
    driven.note(job_id, "checkpoint", **saved)
    driven.run(driven.controller.jobs.pause(job_id, BOSS))
    driven.starter.end(driven.sid(job_id), exit_code=0)
    driven.tick()
    driven.run(driven.controller.jobs.resume(job_id, BOSS))
    driven.tick()
    assert driven.starter.launches[-1].submission == 3
    assert "HDET_RESUME_ROUND" not in driven.starter.launches[-1].env


def test_a_rollback_to_a_round_that_was_never_reached_is_refused(driven: Driven) -> None:
    job_id = driven.submit_running()
    with pytest.raises(Conflict, match="not reached"):
        driven.run(driven.controller.jobs.rollback(job_id, 5, BOSS))


def test_only_a_job_that_has_ended_is_deleted_and_its_output_goes_with_it(driven: Driven) -> None:
    job_id = driven.submit_running()
    jobs = driven.controller.jobs
    with pytest.raises(Conflict, match="cancel it"):
        driven.run(jobs.delete(job_id, SAM))
    driven.note(job_id, "finished", outcome="succeeded")
    kept = driven.home / "logs" / job_id
    kept.mkdir(parents=True)
    run = driven.home / "runs" / job_id
    run.mkdir(parents=True)
    driven.run(jobs.delete(job_id, SAM))
    with pytest.raises(NotFound):
        driven.job(job_id)
    assert not kept.exists()
    assert not run.exists()


def test_nobody_waits_while_the_files_of_a_deleted_job_are_removed(
    driven: Driven, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = driven.submit()
    jobs = driven.controller.jobs
    driven.run(jobs.cancel(job_id, SAM))
    threads = []
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: threads.append(threading.current_thread()))
    driven.run(jobs.delete(job_id, SAM))
    assert len(threads) == 2  # its output and its run
    assert threading.main_thread() not in threads


def test_a_job_is_deleted_when_its_time_after_its_end_is_over(driven: Driven) -> None:
    job_id = driven.submit_running(ttl_after_finished_s=60)
    driven.note(job_id, "finished", outcome="succeeded")
    driven.starter.end(driven.sid(job_id))
    driven.tick(59)
    driven.job(job_id)
    driven.tick(2)
    with pytest.raises(NotFound):
        driven.job(job_id)


def test_a_drain_pauses_what_runs_admits_nothing_and_its_end_resumes_both(driven: Driven) -> None:
    running, waiting = driven.submit_running(), driven.submit()
    jobs = driven.controller.jobs
    assert driven.run(jobs.drain(BOSS, "upgrade")) == [running]
    driven.note(running, "paused", round=1)
    driven.tick()
    driven.tick()
    driven.restart()
    driven.tick()
    assert driven.state(running)[0] == "PAUSED"
    assert driven.state(waiting)[0] == "QUEUED"
    assert len(driven.starter.launches) == 1
    driven.run(driven.controller.jobs.drain(BOSS, is_draining=False))
    driven.tick()
    assert {launch.job_id for launch in driven.starter.launches[1:]} == {running, waiting}


def test_a_job_that_pauses_after_the_end_of_its_drain_goes_on_too(driven: Driven) -> None:
    job_id = driven.submit_running()
    jobs = driven.controller.jobs
    driven.run(jobs.drain(BOSS, "upgrade"))
    assert driven.run(jobs.drain(BOSS, is_draining=False)) == []
    driven.note(job_id, "paused", round=1)
    for _ in range(3):
        driven.tick()
    assert driven.state(job_id) == ("STARTING", "Starting")
    assert [launch.submission for launch in driven.starter.launches] == [1, 2]
    assert driven.job(job_id).wanted is None


@pytest.mark.parametrize("is_stopping", [True, False])
def test_a_drained_job_that_is_paused_by_hand_stays_so_after_the_drain(
    driven: Driven, *, is_stopping: bool
) -> None:
    job_id = driven.submit_running()
    jobs = driven.controller.jobs
    driven.run(jobs.drain(BOSS, "upgrade"))
    if is_stopping:
        driven.run(jobs.pause(job_id, SAM, "not yet"))
    driven.note(job_id, "paused", round=1)
    driven.tick()
    driven.tick()
    if not is_stopping:
        driven.run(jobs.pause(job_id, SAM, "not yet"))
    assert driven.state(job_id) == ("PAUSED", "Paused")
    told = driven.events(job_id, "audit")[-1]
    assert (told["actor"], told["action"], told["reason"]) == ("sam", "pause", "not yet")
    driven.run(jobs.drain(BOSS, is_draining=False))
    driven.tick()
    assert driven.state(job_id) == ("PAUSED", "Paused")
    driven.run(jobs.resume(job_id, SAM))
    driven.tick()
    assert driven.state(job_id) == ("STARTING", "Starting")


def test_silence_counts_as_lost_replicas_only_past_both_bounds(driven: Driven) -> None:
    job_id = driven.submit_running()
    request: dict[str, Any] = {"job": job_id, "attempt": 1}
    hearing = driven.controller.hearing
    for _ in range(3):
        driven.now_s += 10
        driven.run(hearing.reported(request))
    driven.tick(99)  # ten usual rounds are 100 s here
    assert driven.state(job_id) == ("RUNNING", "Running")
    driven.tick(2)
    assert driven.state(job_id) == ("DEGRADED", "ReplicaLost")
    driven.run(hearing.reported(request))
    assert driven.state(job_id) == ("RUNNING", "Running")


def test_a_clock_that_steps_back_holds_no_retry_up_for_ever(driven: Driven) -> None:
    job_id = driven.submit_running()
    driven.starter.end(driven.sid(job_id), exit_code=1)
    driven.tick()
    driven.now_s -= 1_000_000
    driven.tick()
    assert len(driven.starter.launches) == 2
    assert driven.state(job_id)[0] == "STARTING"


def test_a_driver_whose_job_was_canceled_while_ray_took_it_is_stopped(
    driven: Driven, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = driven.submit()
    loop, start = driven.loop, driven.starter.start

    def take_slowly(launch: Launch) -> str:
        cancel = driven.controller.jobs.cancel(job_id, SAM)
        asyncio.run_coroutine_threadsafe(cancel, loop).result()
        return start(launch)

    monkeypatch.setattr(driven.starter, "start", take_slowly)
    driven.tick()
    driven.tick()
    driven.tick()
    assert driven.state(job_id) == ("CANCELED", "Canceled")
    assert [status.status for status in driven.starter.states().values()] in ([], [DriverStatus.STOPPED])


def test_more_than_a_processs_environment_takes_is_refused(driven: Driven) -> None:
    driven.submit(config={"text": "x" * 60_000})
    with pytest.raises(Invalid, match="reach a process"):
        driven.submit(config={"text": '"' * 32_500})
    with pytest.raises(Invalid, match="reach a process"):
        driven.submit(runtime_env={"env_vars": {f"V{i}": "x" * 4000 for i in range(40)}})
