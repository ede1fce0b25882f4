"""Drivers as Ray jobs: which of the cluster's submissions are ours, and what of them is told."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hdet_service.starter import RayStarter, is_ours

JOB = "01JQ0000000000000000000001"


def starter_among(tmp_path: Path, *submission_ids: str | None) -> RayStarter:
    """A starter on a cluster that runs these."""
    jobs = [
        SimpleNamespace(
            submission_id=sid, status="RUNNING", driver_exit_code=None, message=None, error_type=None
        )
        for sid in submission_ids
    ]

    def connect(_: str) -> Any:
        return SimpleNamespace(list_jobs=lambda: jobs)

    return RayStarter("head:6379", None, tmp_path, connect)


def test_other_peoples_jobs_are_none_of_ours_whatever_they_are_called(tmp_path: Path) -> None:
    ours = f"hdet-{JOB}-12"
    foreign = ("hdet-bench-1", "hdet-nightly", f"hdet-{JOB}", f"hdet-{JOB}-x", f"hdet-{JOB.lower()}-1")
    starter = starter_among(tmp_path, ours, *foreign, "raysubmit_abc", None)
    assert list(starter.states()) == [ours]


@pytest.mark.parametrize("submission_id", [f"hdet-{JOB}-1\n", f"x-hdet-{JOB}-1", f"hdet-{JOB}0-1", ""])
def test_an_id_is_ours_only_as_a_whole(submission_id: str) -> None:
    assert is_ours(f"hdet-{JOB}-1")
    assert not is_ours(submission_id)
