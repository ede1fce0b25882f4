"""The trainer: what TorchTrainer takes goes through, and bad settings fail before any worker starts."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("ray")

from ray.train import CheckpointConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig

from hdet_ray.exceptions import ConfigError
from hdet_ray.optim.mesh import current_session
from hdet_ray.train.trainer import HDETTrainer


def loop() -> None:
    """Never run here."""


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"ranks_per_replica": 0}, "ranks_per_replica=0"),
        ({"checkpoint_every_rounds": 0}, "checkpoint_every_rounds=0"),
        ({"checkpoint_keep": 0}, "checkpoint_keep=0"),
        ({"collective_timeout_s": 9.5}, r"collective_timeout_s=9\.5 must be at least 10"),
        ({"collective_timeout_s": float("nan")}, "collective_timeout_s=nan"),
        ({"ranks_per_replica": 2, "scaling_config": ScalingConfig(num_workers=5)}, "5 ranks"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_before_workers_start(
    options: dict[str, Any], match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        HDETTrainer(loop, **options)


def test_an_elastic_number_of_workers_is_left_to_the_workers() -> None:
    trainer = HDETTrainer(loop, ranks_per_replica=2, scaling_config=ScalingConfig(num_workers=(3, 5)))
    assert trainer.scaling_config.num_workers == (3, 5)


@pytest.mark.parametrize(("use_gpu", "backend"), [(False, "gloo"), (True, "cpu:gloo,cuda:nccl")])
def test_the_backend_carries_reports_on_the_host(use_gpu: bool, backend: str) -> None:
    trainer = HDETTrainer(loop, scaling_config=ScalingConfig(num_workers=2, use_gpu=use_gpu))
    assert trainer.backend_config.backend == backend


def test_the_users_torch_config_wins_and_stays_as_it_was() -> None:
    given = TorchConfig(backend="nccl", timeout_s=7)
    trainer = HDETTrainer(loop, torch_config=given, collective_timeout_s=30)
    assert (trainer.backend_config.backend, trainer.backend_config.timeout_s) == ("nccl", 7)
    assert given == TorchConfig(backend="nccl", timeout_s=7)


def test_a_timeout_of_the_users_torch_config_is_that_of_all_collectives() -> None:
    seen = []

    def reading() -> None:
        seen.append(current_session().collective_timeout_s)

    HDETTrainer(
        reading, torch_config=TorchConfig(timeout_s=77), scaling_config=ScalingConfig(num_workers=0)
    ).fit()
    assert seen == [77]


def test_collectives_fail_after_the_timeout_that_was_asked_for() -> None:
    given = TorchConfig(init_method="tcp")
    trainer = HDETTrainer(loop, torch_config=given, collective_timeout_s=30)
    assert (trainer.backend_config.timeout_s, trainer.backend_config.init_method) == (30, "tcp")
    assert given.timeout_s == TorchConfig().timeout_s


@pytest.mark.parametrize(
    ("theirs", "keep", "kept"),
    [
        (CheckpointConfig(), 3, 3),
        (CheckpointConfig(), None, None),
        (CheckpointConfig(num_to_keep=8), 3, 8),
        (CheckpointConfig(checkpoint_score_attribute="loss"), 3, None),
    ],
)
def test_the_users_checkpoint_config_wins(
    theirs: CheckpointConfig, keep: int | None, kept: int | None
) -> None:
    given = RunConfig(name="x", checkpoint_config=theirs)
    trainer = HDETTrainer(loop, run_config=given, checkpoint_keep=keep)
    assert trainer.run_config.checkpoint_config.num_to_keep == kept
    assert trainer.run_config.name == "x"
    assert given.checkpoint_config is theirs


def test_a_loop_with_two_arguments_is_refused_as_by_ray() -> None:
    def two(config: dict[str, Any], more: int) -> None: ...

    with pytest.raises(ValueError, match="0 or 1 required arguments"):
        HDETTrainer(two)._get_train_func()


@pytest.mark.parametrize("num_arguments", [0, 1])
def test_a_loop_gets_its_config_if_it_takes_one(num_arguments: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    loops = [lambda: seen.append("none"), lambda config: seen.append(config["x"])]
    trainer = HDETTrainer(
        loops[num_arguments], train_loop_config={"x": 5}, scaling_config=ScalingConfig(num_workers=0)
    )
    trainer.fit()  # Ray's local mode: in this process, without a cluster
    assert seen == [["none"], [5]][num_arguments]


def test_the_session_ends_with_the_loop() -> None:
    seen = []

    def failing() -> None:
        seen.append(current_session().collective_timeout_s)
        raise KeyError("the user's own")

    with pytest.raises(KeyError):
        HDETTrainer(failing, collective_timeout_s=12, scaling_config=ScalingConfig(num_workers=0)).fit()
    assert seen == [12]
    assert current_session().collective_timeout_s is None
