"""A run that is a job, on real Ray: its schedule is the controller's, its pause clean, its way back exact."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.train import FailureConfig, Result, RunConfig, ScalingConfig

from hdet_ray import HDETTrainer
from hdet_ray.config import Fixed
from hdet_ray.core.replay import read_ledger, replay
from hdet_ray.train.checkpoints import load
from hdet_service.pins import pin
from hdet_service.saved import list_saved
from tests.ray.loops import train
from tests.ray.test_attach import assert_ends_equal, final
from tests.service.simulated_run import JOB, Service

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("cluster")]

SPEC = {"hdet": {"controller": "fixed", "alpha": 0.1, "sync_every": 40}}


@ray.remote(num_cpus=0)
class Controller:
    """The part of the service's actor that answers runs."""

    def __init__(self, folder: str) -> None:
        self.service = Service(Path(folder))
        self.notes: list[tuple[str, dict[str, Any]]] = []

    def call(self, kind: str, request: dict[str, Any]) -> dict[str, Any]:
        if kind == "note":
            self.notes.append((request["kind"], request["data"]))
        if kind == "exchange" and request["round"] == self.pause_round:
            self.service.change_job(lambda job: setattr(job, "wanted", "paused"))
        return self.service.call(kind, request)

    pause_round = -1

    def pause_in(self, round: int) -> None:
        self.pause_round = round

    def begin_submission(self, submission: int) -> None:
        def change(job: Any) -> None:
            job.submission, job.wanted = submission, None

        self.pause_round = -1
        self.service.change_job(change)

    def seen(self) -> dict[str, Any]:
        job = self.service.job()
        told = {"round": job.round, "attempt": job.attempt, "step": job.step, "storage": job.storage_path}
        return {**told, "notes": self.notes, "ledger": self.service.ledger()}


@pytest.fixture
def controller(cluster: None, tmp_path: Path) -> Iterator[Any]:
    actor = Controller.options(name="hdet-controller", namespace="hdet").remote(str(tmp_path))
    yield actor
    ray.kill(actor)


def fit(
    folder: Path, name: str, environment: dict[str, str], keep: int | None = None, **config: Any
) -> Result:
    env = {"env_vars": environment}
    return HDETTrainer(
        train,
        train_loop_config={"controller": Fixed(alpha=0.0, sync_every=20), **config},
        checkpoint_keep=keep,
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(
            name=name,
            storage_path=str(folder),
            failure_config=FailureConfig(max_failures=0),
            worker_runtime_env=env,
        ),
    ).fit()


def job_environment(submission: int = 1, **more: str) -> dict[str, str]:
    return {
        "HDET_JOB_ID": JOB,
        "HDET_CONTROL": "hdet/hdet-controller",
        "HDET_SUBMISSION": str(submission),
        "HDET_JOB_SPEC": json.dumps(SPEC),
        **more,
    }


def test_a_paused_job_goes_on_and_ends_as_if_nothing_had_been(controller: Any, tmp_path: Path) -> None:
    ray.get(controller.begin_submission.remote(1))
    ray.get(controller.pause_in.remote(3))
    paused = fit(tmp_path, "job", job_environment())
    seen = ray.get(controller.seen.remote())
    assert (seen["round"], seen["attempt"], seen["step"]) == (4, 1, 160)  # the spec's controller: T = 40
    assert seen["notes"][-1] == ("paused", {"round": 4, "step": 160})
    assert [data["round"] for kind, data in seen["notes"] if kind == "checkpoint"][-1] == 4
    assert final(paused).manifest.attempt == 1
    assert seen["storage"] == str(tmp_path / "job")

    ray.get(controller.begin_submission.remote(2))
    ended = fit(tmp_path, "job", job_environment(2))
    seen = ray.get(controller.seen.remote())
    assert (seen["round"], seen["attempt"], seen["step"]) == (10, 2, 400)
    lines = seen["ledger"]
    assert replay(read_ledger(lines)).departure is None
    mine = (tmp_path / "job" / "hdet_ledger.jsonl").read_text().splitlines()
    assert lines[1:] == mine[1:]
    alone = fit(tmp_path, "alone", {}, controller=Fixed(alpha=0.1, sync_every=40))
    assert_ends_equal(ended, alone)


def test_a_rollback_goes_on_from_the_rounds_checkpoint(controller: Any, tmp_path: Path) -> None:
    ray.get(controller.begin_submission.remote(1))
    fit(tmp_path, "job", job_environment(), stop=200)
    ray.get(controller.begin_submission.remote(2))
    fit(tmp_path, "job", job_environment(2, HDET_RESUME_ROUND="2"), stop=120)
    seen = ray.get(controller.seen.remote())
    assert (seen["attempt"], seen["round"]) == (2, 3)
    rounds = [(i["attempt"], i["round"]) for i in map(json.loads, seen["ledger"][1:])]
    assert rounds == [(1, 0), (1, 1), (2, 2)]
    # Workers that start again under the same driver go on from what it has saved since.
    again = fit(tmp_path, "job", job_environment(2, HDET_RESUME_ROUND="2"), stop=160)
    seen = ray.get(controller.seen.remote())
    assert (seen["attempt"], seen["round"]) == (3, 4)
    assert load(Path(again.checkpoint.path) / "hdet").manifest.attempt == 3


def test_a_rollback_finds_its_checkpoint_though_the_run_has_pruned_it(
    controller: Any, tmp_path: Path
) -> None:
    ray.get(controller.begin_submission.remote(1))
    fit(tmp_path, "job", job_environment(), stop=120)
    (saved,) = (c for c in list_saved(str(tmp_path / "job")) if c.round == 1)
    assert pin(str(tmp_path / "job"), Path(saved.path).name, saved.pin_name)
    ray.get(controller.begin_submission.remote(2))
    fit(tmp_path, "job", job_environment(2), keep=1, stop=200)
    assert [c.round for c in list_saved(str(tmp_path / "job"))] == [5]
    ray.get(controller.begin_submission.remote(3))
    fit(tmp_path, "job", job_environment(3, HDET_RESUME_ROUND="1"), keep=1, stop=80)
    seen = ray.get(controller.seen.remote())
    assert (seen["attempt"], seen["round"]) == (3, 2)
    rounds = [(i["attempt"], i["round"]) for i in map(json.loads, seen["ledger"][1:])]
    assert rounds == [(1, 0), (3, 1)]
