"""`attach` on real Ray: killed or resized, a run goes on as if nothing had been."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.train import FailureConfig, Result, RunConfig, ScalingConfig

from hdet_ray import Auto, HDETTrainer, export_weights, replay
from hdet_ray.core.fan_out import spread_multipliers
from hdet_ray.core.replay import read_ledger
from hdet_ray.train.checkpoints import Loaded, load
from tests.ray.loops import train

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]

FAN_OUT = Auto(alpha=1 / 9, sync_every=40)
PLAIN = Auto(sync_every=40)


def fit(
    folder: Path, name: str, num_workers: int, config: dict[str, Any], ranks_per_replica: int = 1
) -> Result:
    out = folder / f"{name}-seen"
    out.mkdir(exist_ok=True)
    return HDETTrainer(
        train,
        ranks_per_replica=ranks_per_replica,
        train_loop_config={**config, "out": str(out)},
        scaling_config=ScalingConfig(num_workers=num_workers),
        run_config=RunConfig(
            name=name, storage_path=str(folder), failure_config=FailureConfig(max_failures=1)
        ),
    ).fit()


def final(result: Result) -> Loaded:
    return load(Path(result.checkpoint.path) / "hdet")


def seen(folder: Path, name: str, world_size: int) -> list[list[dict[str, Any]]]:
    """What each rank wrote down in its newest attempt, by step."""
    out = folder / f"{name}-seen"
    paths = [sorted(out.glob(f"{world_size}-{rank}-*.json")) for rank in range(world_size)]
    return [json.loads(found[-1].read_text()) for found in paths]


def equal(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(equal, left, right))
    return bool(left == right)


def middle_of(phase: str, steps: list[dict[str, Any]]) -> int:
    """A step inside a round of this phase that a checkpoint stands before."""
    inside = [entry["step"] for entry in steps if entry["phase"] == phase and entry["step"] >= 20]
    return inside[len(inside) // 2] + 3


def assert_ends_equal(broken: Result, unbroken: Result) -> None:
    ours, theirs = final(broken), final(unbroken)
    assert equal(dict(ours.weights), dict(theirs.weights))
    assert equal(ours.optimizer, theirs.optimizer)
    assert equal(ours.schedule["schedule"]["state"], theirs.schedule["schedule"]["state"])
    for mine, other in zip(ours.ranks, theirs.ranks, strict=True):
        assert mine["sampler"] == other["sampler"]
        assert equal(mine["rng"]["torch"], other["rng"]["torch"])  # the others were never seeded


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def unbroken(cluster: None, folder: Path) -> Callable[[int, Auto], Result]:
    results: dict[tuple[int, Auto], Result] = {}

    def run(num_workers: int, controller: Auto) -> Result:
        key = (num_workers, controller)
        if key not in results:
            name = f"unbroken-{len(results)}"
            results[key] = fit(folder, name, num_workers, {"controller": controller})
        return results[key]

    return run


def killed(folder: Path, whole: Result, num_workers: int, controller: Auto, phase: str) -> Result:
    steps = seen(folder, Path(whole.path).name, num_workers)[0]
    kill = [num_workers - 1, middle_of(phase, steps)]
    return fit(folder, f"killed-{phase}-{num_workers}", num_workers, {"controller": controller, "kill": kill})


def test_a_run_killed_in_fan_out_ends_bit_equal_to_the_unbroken_one(
    folder: Path, unbroken: Callable[[int, Auto], Result]
) -> None:
    whole = unbroken(2, FAN_OUT)
    broken = killed(folder, whole, 2, FAN_OUT, "fan_out")
    assert_ends_equal(broken, whole)
    resumed_at = seen(folder, Path(broken.path).name, 2)[0][0]["step"]
    assert resumed_at > 100  # it did not simply start again
    ledger = read_ledger((Path(broken.path) / "hdet_ledger.jsonl").read_text().splitlines())
    assert replay(ledger).departure is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("phase", "controller"), [("scout", PLAIN), ("pairs", PLAIN), ("train", PLAIN), ("fan_out", FAN_OUT)]
)
def test_a_run_of_four_killed_in_any_phase_ends_bit_equal_to_the_unbroken_one(
    folder: Path, unbroken: Callable[[int, Auto], Result], phase: str, controller: Auto
) -> None:
    whole = unbroken(4, controller)
    broken = killed(folder, whole, 4, controller, phase)
    assert_ends_equal(broken, whole)
    assert seen(folder, Path(broken.path).name, 4)[0][0]["step"] > 0


def test_the_runs_metrics_are_those_of_its_last_boundary(unbroken: Callable[[int, Auto], Result]) -> None:
    metrics = unbroken(2, FAN_OUT).metrics
    assert metrics["hdet/step"] == 400
    assert metrics["hdet/replicas"] == 2
    assert metrics["hdet/loss"] > 0
    assert {"hdet/round", "hdet/phase", "hdet/base_lr", "hdet/base_lr/1", "hdet/peak_lr"} <= metrics.keys()


def test_only_the_newest_checkpoints_are_kept(unbroken: Callable[[int, Auto], Result]) -> None:
    whole = unbroken(2, FAN_OUT)
    assert sum(path.is_dir() for path in Path(whole.path).glob("checkpoint_*")) == 3


def test_weights_are_exported_from_the_runs_checkpoint(
    tmp_path: Path, unbroken: Callable[[int, Auto], Result]
) -> None:
    from safetensors.torch import load_file

    from tests.ray.loops import build_model

    path = export_weights(unbroken(2, FAN_OUT).checkpoint.path, tmp_path / "model.safetensors")
    assert build_model().load_state_dict(load_file(path)).missing_keys == []


@pytest.fixture(scope="module")
def stopped(cluster: None, folder: Path) -> Path:
    """A run of four replicas that stopped in its fan-out."""
    return Path(fit(folder, "stopped", 4, {"controller": FAN_OUT, "stop": 300}).path)


@pytest.mark.parametrize(
    "num_workers",
    [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(8, marks=pytest.mark.slow)],
)
def test_a_checkpoint_of_four_replicas_resumes_at_any_size_with_the_rates_of_its_schedule(
    folder: Path, stopped: Path, num_workers: int
) -> None:
    name = f"resized-{num_workers}"
    shutil.copytree(stopped, folder / name)
    fit(folder, name, num_workers, {"controller": FAN_OUT, "stop": 320})
    ranks = seen(folder, name, num_workers)
    assert {steps[0]["step"] for steps in ranks} == {ranks[0][0]["step"]}
    assert ranks[0][0]["step"] > 200
    for steps in ranks:
        for entry in steps:
            assert entry["lr"] == entry["planned"]
    at_start = sorted(steps[0]["base"][0] for steps in ranks)
    assert at_start == pytest.approx(sorted(spread_multipliers(num_workers, 1 / 9)))


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_is_passed_over(folder: Path, stopped: Path) -> None:
    shutil.copytree(stopped, folder / "damaged")
    stored = sorted(path for path in (folder / "damaged").glob("checkpoint_*") if path.is_dir())
    steps = [load(path / "hdet").manifest.step for path in stored]
    (stored[-1] / "hdet" / "model.safetensors").write_bytes(b"")
    fit(folder, "damaged", 2, {"controller": FAN_OUT, "stop": 300})
    assert seen(folder, "damaged", 2)[0][0]["step"] == steps[-2]


@pytest.mark.slow
def test_ranks_of_one_replica_share_its_values(folder: Path, cluster: None) -> None:
    fit(folder, "groups", 4, {"controller": FAN_OUT, "stop": 200}, ranks_per_replica=2)
    ranks = seen(folder, "groups", 4)
    assert [steps[0]["replica"] for steps in ranks] == [0, 0, 1, 1]
    for step in range(200):
        rates = [steps[step]["lr"] for steps in ranks]
        assert rates[0] == rates[1] != rates[2] == rates[3]
