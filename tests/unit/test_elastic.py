"""Sizes of an elastic run, and the settings that make Ray quick: what is refused, and what is left alone."""

from __future__ import annotations

import pytest

pytest.importorskip("ray")

from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import RayActorError
from ray.train import ControllerError, DataConfig, FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

from hdet_ray.exceptions import (
    CheckpointError,
    CollectiveError,
    ConfigError,
    FencedError,
    HDETError,
    SearchError,
)
from hdet_ray.train.elastic import elastic_scaling, recovery_settings, workers_in_replicas
from hdet_ray.train.hopeless import EndsHopelessRuns
from hdet_ray.train.settings import defaults_in_environment
from hdet_ray.train.surplus import MembersDataConfig
from hdet_ray.train.trainer import HDETTrainer
from hdet_ray.train.warm import SETUP_HOOK, WarmWorkers, with_setup_hook


def loop() -> None:
    """Never run here."""


@given(workers=st.integers(0, 200), g=st.integers(1, 16))
def test_replicas_are_whole_and_fewer_workers_than_one_are_left_over(workers: int, g: int) -> None:
    ranks = workers_in_replicas(workers, g)
    assert ranks % g == 0
    assert 0 <= workers - ranks < g


def scaling(smallest: int, largest: int) -> ScalingConfig:
    config = ScalingConfig(num_workers=(1, 8))
    config.num_workers = (smallest, largest)  # Ray itself refuses some of them when they are made
    return config


@pytest.mark.parametrize(
    ("sizes", "ranks_per_replica", "match"),
    [
        ((0, 4), 1, r"num_workers=\(0, 4\).*minimum 0 must be at least 1; \(1, 4\)"),
        ((4, 2), 1, r"num_workers=\(4, 2\).*above the maximum"),
        ((1, 3), 4, r"num_workers=\(1, 3\) never makes a replica of ranks_per_replica=4.*at least 4"),
    ],
)
def test_a_range_that_cannot_work_is_refused_with_its_remedy(
    sizes: tuple[int, int], ranks_per_replica: int, match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        elastic_scaling(scaling(*sizes), ranks_per_replica)


def test_below_one_replica_ray_waits_for_workers() -> None:
    given_config = ScalingConfig(num_workers=(1, 5))
    assert elastic_scaling(given_config, 2).num_workers == (2, 5)
    assert given_config.num_workers == (1, 5)


def test_a_torch_config_of_its_own_kind_cannot_leave_workers_over() -> None:
    class Other(TorchConfig):
        pass

    with pytest.raises(ConfigError, match="torch_config=Other makes process groups of its own"):
        HDETTrainer(
            loop,
            ranks_per_replica=2,
            torch_config=Other(),
            scaling_config=ScalingConfig(num_workers=(2, 5)),
        )


def test_ray_s_settings_hold_during_the_run_and_a_user_s_own_win() -> None:
    environment = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "3"}
    with defaults_in_environment(recovery_settings(40), environment):
        assert environment["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] == "3"
        assert environment["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] == "5"
        assert environment["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] == "40"
    assert environment == {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "3"}


def test_workers_import_ahead_unless_the_user_hooks_in() -> None:
    (variable,) = with_setup_hook({})["env_vars"]
    assert with_setup_hook({"env_vars": {"A": "1"}})["env_vars"] == {"A": "1", variable: SETUP_HOOK}
    for own in ({"env_vars": {variable: "mine.hook"}}, {"worker_process_setup_hook": "mine.hook"}):
        assert with_setup_hook(own) == own


@pytest.mark.parametrize(("keeps", "count"), [(True, 1), (False, 0)])
def test_warm_workers_can_be_left_out(keeps: bool, count: int) -> None:
    given_config = RunConfig(name="x")
    trainer = HDETTrainer(loop, run_config=given_config, keeps_warm_workers=keeps)
    warm = [callback for callback in trainer.run_config.callbacks if isinstance(callback, WarmWorkers)]
    assert len(warm) == count
    assert bool(trainer.run_config.worker_runtime_env) is keeps
    assert not given_config.callbacks  # the user's object stays as it was
    assert not given_config.worker_runtime_env


class Recorded(DataConfig):
    """Splits among as many workers as it is asked to."""

    def configure(self, datasets, world_size, worker_handles, worker_node_ids, **options):  # type: ignore[no-untyped-def]
        return [{"train": (i, world_size, worker_node_ids)} for i in range(world_size)]


def test_a_surplus_worker_gets_no_shard_and_nobody_waits_for_it() -> None:
    nodes = ["a", "a", "b", "b", "c"]
    shards = MembersDataConfig(Recorded(), 2).configure({"train": object()}, 5, None, nodes)
    assert shards == [{"train": (i, 4, nodes[:4])} for i in range(4)] + [{"train": None}]


def failed_worker(error: Exception) -> WorkerGroupError:
    return WorkerGroupError("workers failed", {1: UserExceptionWithTraceback(error, "a traceback")})


@pytest.mark.parametrize("kind", [ConfigError, SearchError, CheckpointError, FencedError])
def test_an_error_that_comes_again_ends_the_run_at_once(kind: type[HDETError]) -> None:
    hopeless = failed_worker(kind("no such thing")).worker_failures
    with pytest.raises(kind, match="no such thing"):
        EndsHopelessRuns().after_exception(None, hopeless)


def test_a_lost_rank_does_not_end_the_run() -> None:
    EndsHopelessRuns().after_exception(
        None, failed_worker(CollectiveError("rank 1 is silent")).worker_failures
    )


def test_a_worker_that_dies_while_the_group_begins_is_a_failure_like_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    died, ours = ControllerError(RayActorError()), ControllerError(ValueError("a fault"))
    ends: list[Exception] = [died, died, ours, died, died]

    def end(_: TorchTrainer) -> None:
        raise ends.pop(0)

    monkeypatch.setattr(TorchTrainer, "fit", end)
    config = RunConfig(name="x", failure_config=FailureConfig(max_failures=1))
    with pytest.raises(ControllerError) as second:  # one more than max_failures
        HDETTrainer(loop, run_config=config).fit()
    assert second.value is died
    with pytest.raises(ControllerError) as third:  # not of that kind
        HDETTrainer(loop, run_config=config).fit()
    assert third.value is ours
    assert len(ends) == 2
