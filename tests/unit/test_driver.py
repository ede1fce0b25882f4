"""A job's driver before it starts workers: what its spec says, and what of it can't work."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")

from hdet_ray.exceptions import CheckpointError
from hdet_ray.train import driver
from hdet_ray.train.driver import build_trainer, check_storage, run_job
from hdet_ray.train.notes import Notes
from hdet_ray.train.outcomes import DriverExit
from hdet_ray.train.settings import JobSettings

OLD_SPEC: dict[str, Any] = {
    "entrypoint": "byte_lm",
    "replicas": {"min": 2, "max": 2, "ranks_per_replica": 1, "cpus_per_rank": 1, "gpus_per_rank": 0},
    "checkpoint": {"every_rounds": 1, "keep": 3},
    "max_failures": 3,
}
"""As a service of an older release tells it."""


class SilentNotes(Notes):
    """Nobody listens."""

    def tell(self, kind: str, data: Mapping[str, Any], *, patience_s: float) -> bool:
        return True


def make_job(storage_path: str | None = None, **spec: Any) -> JobSettings:
    return JobSettings(
        job="j", namespace="hdet", actor="a", storage_path=storage_path, spec={**OLD_SPEC, **spec}
    )


def told_to_the_trainer(job: JobSettings, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    told: dict[str, Any] = {}
    monkeypatch.setattr("hdet_ray.train.trainer.HDETTrainer", lambda _, **given: told.update(given))
    build_trainer(lambda: None, job, SilentNotes(job))
    return told


def test_a_spec_of_an_older_service_takes_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    told = told_to_the_trainer(make_job(), monkeypatch)
    assert (told["collective_timeout_s"], told["checkpoint_sync"]) == (60.0, False)


def test_what_the_spec_says_reaches_the_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(collective_timeout_s=5, checkpoint={"every_rounds": 1, "keep": 3, "sync": True})
    told = told_to_the_trainer(job, monkeypatch)
    assert (told["collective_timeout_s"], told["checkpoint_sync"]) == (5.0, True)


@pytest.mark.parametrize("place", ["{}/file/runs", "nowhere://bucket/runs", "runs"])
def test_storage_that_can_not_be_used_ends_the_job_by_name_and_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (tmp_path / "file").write_text("no folder")
    storage_path = place.format(tmp_path)
    monkeypatch.setattr(driver, "build_trainer", lambda *_: pytest.fail("no group is begun"))
    monkeypatch.setattr(driver.time, "sleep", lambda _: None)
    job = make_job(storage_path)
    end = run_job(job, SilentNotes(job))
    assert end.exit is DriverExit.CHECKPOINT_ERROR
    assert storage_path in end.message
    assert "checkpoint.storage_path" in end.message


def test_storage_that_is_away_for_a_moment_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "runs"
    blocked.write_text("no folder")
    monkeypatch.setattr(driver.time, "sleep", lambda _: blocked.unlink())
    check_storage(make_job(str(blocked)))
    assert (blocked / "j").is_dir()


def test_storage_that_can_be_used_is_left_as_it_was(tmp_path: Path) -> None:
    check_storage(make_job(str(tmp_path / "runs")))
    assert list((tmp_path / "runs" / "j").iterdir()) == []
    check_storage(make_job(None))
    with pytest.raises(CheckpointError, match="HDET_STORAGE"):
        check_storage(make_job("runs"))
