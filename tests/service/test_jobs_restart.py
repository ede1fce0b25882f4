"""A controller dies at any point of a job's life; its successor goes on from what is stored."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hdet_service.starter import DriverState, DriverStatus
from tests.service.driven import SAM, Driven


@pytest.fixture
def driven(tmp_path: Path) -> Iterator[Driven]:
    with Driven(tmp_path, max_running_jobs=2) as service:
        yield service


def test_a_controller_that_is_woken_and_stopped_at_once_stops(driven: Driven) -> None:
    controller = driven.controller

    async def wake_and_stop() -> None:
        await controller.start()
        await asyncio.sleep(0.01)  # the clockwork waits for the next tick, or for work
        controller._wake()
        async with asyncio.timeout(20.0):
            await controller.stop()

    driven.run(wake_and_stop())
    driven.controller = driven._begin()


def test_a_queued_job_is_started_by_the_successor(driven: Driven) -> None:
    job_id = driven.submit()
    driven.restart()
    driven.tick()
    assert [launch.job_id for launch in driven.starter.launches] == [job_id]


def test_a_start_that_was_committed_but_not_done_is_done_once(driven: Driven) -> None:
    job_id = driven.submit()
    driven.starter.is_up = False
    driven.tick()  # commits, then Ray does not answer
    assert driven.state(job_id) == ("STARTING", "Starting")
    driven.restart()
    driven.starter.is_up = True
    driven.tick()
    driven.tick()
    assert [(launch.job_id, launch.submission) for launch in driven.starter.launches] == [(job_id, 1)]


def test_a_start_that_was_done_but_not_heard_of_is_not_done_again(driven: Driven) -> None:
    job_id = driven.submit()
    driven.tick()
    driven.restart()
    driven.tick()
    assert len(driven.starter.launches) == 1
    assert driven.state(job_id) == ("STARTING", "Starting")


def test_a_running_job_goes_on_untouched(driven: Driven) -> None:
    job_id = driven.submit_running()
    before = driven.transitions(job_id)
    driven.restart()
    driven.tick()
    assert driven.transitions(job_id) == before
    assert driven.starter.stopped == []


def test_a_cancel_that_was_committed_but_not_done_is_done(driven: Driven) -> None:
    job_id = driven.submit_running()
    driven.run(driven.controller.jobs.cancel(job_id, SAM))
    driven.restart()
    driven.tick()
    driven.tick()
    assert driven.starter.stopped[:1] == [driven.sid(job_id)]
    assert driven.state(job_id) == ("CANCELED", "Canceled")


def test_a_pause_goes_on_over_a_restart(driven: Driven) -> None:
    job_id = driven.submit_running()
    driven.run(driven.controller.jobs.pause(job_id, SAM))
    driven.restart()
    driven.tick()
    driven.note(job_id, "paused", round=3)
    driven.restart()
    driven.tick()
    driven.tick()
    assert driven.state(job_id) == ("PAUSED", "Paused")


@pytest.mark.parametrize(
    ("exit_code", "state"), [(0, "SUCCEEDED"), (91, "FAILED"), (1, "QUEUED"), (-9, "QUEUED")]
)
def test_what_ended_meanwhile_is_marked_as_it_ended(driven: Driven, exit_code: int, state: str) -> None:
    job_id = driven.submit_running()
    driven.starter.end(driven.sid(job_id), exit_code=exit_code)
    driven.restart()
    driven.tick()
    assert driven.state(job_id)[0] == state


def test_a_retry_still_waits_after_a_restart(driven: Driven) -> None:
    job_id = driven.submit_running()
    driven.starter.end(driven.sid(job_id), exit_code=1)
    driven.tick()
    driven.restart()
    driven.tick(1)
    assert len(driven.starter.launches) == 1
    driven.tick(5)
    assert len(driven.starter.launches) == 2


def test_a_driver_that_no_job_stands_for_is_stopped(driven: Driven) -> None:
    job_id = driven.submit_running()
    driven.note(job_id, "finished", outcome="failed", reason="SearchFailed")
    driven.starter.drivers[driven.sid(job_id)] = DriverState(status=DriverStatus.RUNNING)
    driven.restart()  # nobody remembers that it was about to end
    driven.tick()
    assert driven.starter.stopped == [driven.sid(job_id)]


def test_each_start_is_a_new_epoch(driven: Driven) -> None:
    first = driven.controller.epoch
    driven.restart()
    assert driven.controller.epoch == first + 1


def test_output_of_jobs_that_are_gone_is_deleted_at_the_next_start(driven: Driven) -> None:
    job_id = driven.submit()
    for name in (job_id, "01J00000000000000000000000"):
        (driven.home / "logs" / name).mkdir(parents=True)
    driven.restart()
    driven.run(driven.controller.start())
    assert [path.name for path in (driven.home / "logs").iterdir()] == [job_id]


def test_a_restarting_controller_does_not_wait_for_torch() -> None:
    """Ray starts it anew after each death, and what it imports is most of the time until it answers."""
    code = "import sys, hdet_service.serving; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_worker_that_takes_a_handle_of_the_controller_does_not_import_the_service() -> None:
    """Ray imports an actor's class with its handle, in the middle of a run's first step."""
    heavy = {"fastapi", "uvicorn", "sqlalchemy", "pydantic", "prometheus_client", "jinja2"}
    code = f"import sys, hdet_service.actor; sys.exit(len({heavy} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
