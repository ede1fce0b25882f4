"""`HDETTrainer`: Ray's TorchTrainer, with the settings that replicas need.

It starts workers as TorchTrainer does and runs the user's loop unchanged; around the loop it sets the
session that the scheduler's constructor reads: how ranks form replicas.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import ray.train
import ray.train.torch
from ray.train import CheckpointConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from hdet_ray.exceptions import ConfigError, RunPaused
from hdet_ray.optim.mesh import GROUP_DIM, REPLICA_DIM, Session, check_ranks_per_replica, set_session
from hdet_ray.train.reports import bridge_reports

TrainLoop = Callable[[], Any] | Callable[[dict[str, Any]], Any]


class HDETTrainer(TorchTrainer):
    """A TorchTrainer whose workers form replicas.

    Args:
        train_loop_per_worker: As in TorchTrainer, with zero or one (the config) argument.
        ranks_per_replica: Workers that make one replica and train data-parallel inside it.
            ``ScalingConfig.num_workers`` counts workers, as in Ray, and is a multiple of this.
        collective_timeout_s: Seconds after which a collective fails, unless ``torch_config`` has its own.
        checkpoint_every_rounds: Rounds between checkpoints; the last round is always saved.
        checkpoint_keep: Newest checkpoints that Ray keeps, unless ``RunConfig.checkpoint_config`` says
            how many or by which score; None keeps all, as Ray does.
        **trainer_options: Everything else that TorchTrainer takes: ``train_loop_config``,
            ``scaling_config``, ``run_config``, ``torch_config``, ``datasets``, ….

    Raises:
        ConfigError: A count below 1, or a number of workers that ``ranks_per_replica`` doesn't divide.
    """

    def __init__(
        self,
        train_loop_per_worker: TrainLoop,
        *,
        ranks_per_replica: int = 1,
        collective_timeout_s: float = 60,
        checkpoint_every_rounds: int = 1,
        checkpoint_keep: int | None = 3,
        torch_config: TorchConfig | None = None,
        scaling_config: ScalingConfig | None = None,
        run_config: RunConfig | None = None,
        **trainer_options: Any,
    ) -> None:
        _require_at_least_one("ranks_per_replica", ranks_per_replica, "1 makes every worker a replica")
        _require_at_least_one("checkpoint_every_rounds", checkpoint_every_rounds, "1 saves at each boundary")
        if checkpoint_keep is not None:
            _require_at_least_one("checkpoint_keep", checkpoint_keep, "None keeps all")
        if not collective_timeout_s > 0:
            raise ConfigError(
                f"collective_timeout_s={collective_timeout_s} must be above 0 seconds; 60 is usual"
            )
        scaling_config = scaling_config or ScalingConfig()
        if isinstance(scaling_config.num_workers, int):  # elastic sizes are known in the workers only
            check_ranks_per_replica(scaling_config.num_workers, ranks_per_replica)
        super().__init__(
            _within_session(
                train_loop_per_worker,
                ranks_per_replica=ranks_per_replica,
                collective_timeout_s=collective_timeout_s,
                checkpoint_every_rounds=checkpoint_every_rounds,
            ),
            torch_config=_torch_config(torch_config, scaling_config, collective_timeout_s),
            scaling_config=scaling_config,
            run_config=_run_config(run_config, checkpoint_keep),
            **trainer_options,
        )


def _within_session(
    user_loop: TrainLoop,
    *,
    ranks_per_replica: int,
    collective_timeout_s: float,
    checkpoint_every_rounds: int,
) -> TrainLoop:
    @functools.wraps(user_loop)  # Ray reads the signature to see whether the loop takes a config
    def loop(*config: Any) -> Any:
        bridge = bridge_reports(checkpoint_every_rounds)
        set_session(Session(mesh=_mesh(ranks_per_replica), collective_timeout_s=collective_timeout_s))
        try:
            return user_loop(*config)
        except RunPaused:
            return None  # its checkpoint is stored: the run ends here, and cleanly
        finally:
            set_session(None)
            bridge.close()

    return loop


def _mesh(ranks_per_replica: int) -> DeviceMesh | None:
    if ranks_per_replica == 1:
        return None  # every rank is a replica: what the scheduler assumes by itself
    num_replicas = check_ranks_per_replica(ray.train.get_context().get_world_size(), ranks_per_replica)
    device = ray.train.torch.get_device().type
    return init_device_mesh(
        device, (num_replicas, ranks_per_replica), mesh_dim_names=(REPLICA_DIM, GROUP_DIM)
    )


def _torch_config(
    given: TorchConfig | None, scaling_config: ScalingConfig, collective_timeout_s: float
) -> TorchConfig:
    default_timeout_s = TorchConfig().timeout_s
    config = copy.copy(given) if given is not None else TorchConfig()
    if config.timeout_s == default_timeout_s:
        config.timeout_s = math.ceil(collective_timeout_s)
    if config.backend is None and not getattr(scaling_config, "use_tpu", False):
        # Reports and health go over Gloo, so that a boundary costs the device no synchronization.
        config.backend = "cpu:gloo,cuda:nccl" if scaling_config.use_gpu else "gloo"
    return config


def _run_config(given: RunConfig | None, checkpoint_keep: int | None) -> RunConfig:
    config = copy.copy(given) if given is not None else RunConfig()
    theirs = config.checkpoint_config or CheckpointConfig()
    if theirs.num_to_keep is None and theirs.checkpoint_score_attribute is None:
        config.checkpoint_config = dataclasses.replace(theirs, num_to_keep=checkpoint_keep)
    return config


def _require_at_least_one(name: str, value: int, remedy: str) -> None:
    if value < 1:
        raise ConfigError(f"{name}={value} must be at least 1; {remedy}")
