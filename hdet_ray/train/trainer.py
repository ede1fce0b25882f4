"""`HDETTrainer`: Ray's TorchTrainer, with the settings that replicas need.

It starts workers as TorchTrainer does and runs the user's loop unchanged (`hdet_ray.train.worker`). What
is set here is how ranks form replicas, when a rank that hangs counts as lost, and how soon a run is back
after a change of its workers.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
from typing import Any

from ray.exceptions import RayActorError
from ray.train import CheckpointConfig, ControllerError, DataConfig, Result, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy

from hdet_ray.exceptions import ConfigError
from hdet_ray.train.elastic import SHORTEST_COLLECTIVE_TIMEOUT_S, elastic_scaling, recovery_settings
from hdet_ray.train.hopeless import EndsHopelessRuns
from hdet_ray.train.index_copy import IndexCopy, restore_index
from hdet_ray.train.process_group import ReplicaTorchConfig
from hdet_ray.train.scaling import WARM_UP_S, FreshScalingPolicy
from hdet_ray.train.settings import defaults_in_environment
from hdet_ray.train.surplus import MembersDataConfig
from hdet_ray.train.warm import WarmWorkers, with_setup_hook
from hdet_ray.train.worker import TrainLoop, WorkerSettings, within_session

logger = logging.getLogger(__name__)


class HDETTrainer(TorchTrainer):
    """A TorchTrainer whose workers form replicas.

    With ``ScalingConfig(num_workers=(min, max))`` the run goes on with whatever workers there are: each
    change of them starts the group again from the newest checkpoint, with N = workers // ranks_per_replica
    replicas; workers that are left over idle until the next change, and below one replica (or ``min``) the
    run waits. Give ``FailureConfig(max_failures=…)`` as many lost workers as it shall outlive, -1 for any.

    Args:
        train_loop_per_worker: As in TorchTrainer, with zero or one (the config) argument.
        ranks_per_replica: Workers that make one replica and train data-parallel inside it.
            ``ScalingConfig.num_workers`` counts workers, as in Ray; a fixed number is a multiple of this.
        collective_timeout_s: Seconds after which a collective fails, unless ``torch_config`` has its own. A
            rank that is stopped or cut off is named, and the group restarted, after half of it.
        checkpoint_every_rounds: Rounds between checkpoints; the last round is always saved.
        checkpoint_sync: Whether a round waits until the checkpoint before it is stored, which takes
            a third of a second and the upload. A fault then repeats ``checkpoint_every_rounds`` rounds
            at most. Otherwise a checkpoint is stored while the next rounds train, and boundaries are not
            saved while one still waits for Ray.
        checkpoint_keep: Newest checkpoints that Ray keeps, unless ``RunConfig.checkpoint_config`` says
            how many or by which score; None keeps all, as Ray does.
        digest_every_rounds: Rounds between comparisons of all parameters across replicas, bit for bit; None
            compares nothing.
        keeps_warm_workers: Whether each node holds as many idle processes ready as the run has workers on
            it: a restart is seconds faster, for about 300 MB of host memory each.
        **trainer_options: Everything else that TorchTrainer takes: ``train_loop_config``,
            ``scaling_config``, ``run_config``, ``torch_config``, ``datasets``, ….

    Raises:
        ConfigError: A count below 1, a fixed number of workers that ``ranks_per_replica`` doesn't divide, or
            a range of numbers none of which makes a replica.
    """

    def __init__(
        self,
        train_loop_per_worker: TrainLoop,
        *,
        ranks_per_replica: int = 1,
        collective_timeout_s: float = 60,
        checkpoint_every_rounds: int = 1,
        checkpoint_sync: bool = False,
        checkpoint_keep: int | None = 3,
        digest_every_rounds: int | None = 10,
        keeps_warm_workers: bool = True,
        torch_config: TorchConfig | None = None,
        scaling_config: ScalingConfig | None = None,
        run_config: RunConfig | None = None,
        dataset_config: DataConfig | None = None,
        **trainer_options: Any,
    ) -> None:
        _require_at_least_one("ranks_per_replica", ranks_per_replica, "1 makes every worker a replica")
        _require_at_least_one("checkpoint_every_rounds", checkpoint_every_rounds, "1 saves at each boundary")
        if checkpoint_keep is not None:
            _require_at_least_one("checkpoint_keep", checkpoint_keep, "None keeps all")
        if digest_every_rounds is not None:
            _require_at_least_one("digest_every_rounds", digest_every_rounds, "None compares nothing")
        if not collective_timeout_s >= SHORTEST_COLLECTIVE_TIMEOUT_S:
            raise ConfigError(
                f"collective_timeout_s={collective_timeout_s} must be at least "
                f"{SHORTEST_COLLECTIVE_TIMEOUT_S} seconds: with less, a busy rank passes for a silent one; "
                "60 is usual"
            )
        scaling_config = elastic_scaling(scaling_config or ScalingConfig(), ranks_per_replica)
        torch_config = _torch_config(torch_config, scaling_config, collective_timeout_s, ranks_per_replica)
        collective_timeout_s = float(torch_config.timeout_s)
        self._recovery_settings = recovery_settings(collective_timeout_s)
        self._warm_up_s = WARM_UP_S if keeps_warm_workers else 0.0
        super().__init__(
            within_session(
                train_loop_per_worker,
                WorkerSettings(
                    ranks_per_replica=ranks_per_replica,
                    collective_timeout_s=collective_timeout_s,
                    checkpoint_every_rounds=checkpoint_every_rounds,
                    checkpoint_sync=checkpoint_sync,
                    digest_every_rounds=digest_every_rounds,
                ),
            ),
            torch_config=torch_config,
            scaling_config=scaling_config,
            run_config=_run_config(run_config, checkpoint_keep, keeps_warm_workers=keeps_warm_workers),
            dataset_config=_dataset_config(dataset_config, ranks_per_replica),
            **trainer_options,
        )

    def fit(self) -> Result:
        """Train, as TorchTrainer does; Ray's settings for recovery are ours where the user has none.

        Raises:
            TrainingFailedError: as TorchTrainer does, and at once for what trying again can't help (a
                setting that can't work, a search that failed, …), whatever ``max_failures`` says.
            CheckpointError: Ray's index of the run's checkpoints can't be read, and has no copy.
        """
        failures = 0
        with defaults_in_environment(self._recovery_settings):
            while True:
                restore_index(self.run_config)
                try:
                    return super().fit()
                except ControllerError as error:
                    # A worker that dies at the very moment its loop is launched: Ray takes it for a fault
                    # of its own controller. The run goes on from its storage, as after any lost worker.
                    failures += 1
                    limit = _max_failures(self.run_config)
                    if not isinstance(error.controller_failure, RayActorError) or 0 <= limit < failures:
                        raise
                    logger.warning(
                        "a worker died while the group began: failures=%d error=%s", failures, error
                    )

    def _initialize_and_run_controller(self, **options: Any) -> Result:
        """Ray's, with an elastic policy that sees the cluster as it is now."""
        if type(options.get("scaling_policy")) is ElasticScalingPolicy:
            options["scaling_policy"] = FreshScalingPolicy(self.scaling_config, self._warm_up_s)
        return super()._initialize_and_run_controller(**options)  # type: ignore[misc,no-any-return]


def _torch_config(
    given: TorchConfig | None,
    scaling_config: ScalingConfig,
    collective_timeout_s: float,
    ranks_per_replica: int,
) -> TorchConfig:
    if given is not None and type(given) is not TorchConfig:
        if ranks_per_replica > 1 and not isinstance(scaling_config.num_workers, int):
            raise ConfigError(
                f"torch_config={type(given).__name__} makes process groups of its own, so workers left "
                f"over by replicas of {ranks_per_replica} can't stay out of them; use a TorchConfig, or a "
                "fixed num_workers"
            )
        config = copy.copy(given)
    else:
        config = ReplicaTorchConfig.of(given or TorchConfig(), ranks_per_replica)
    if config.timeout_s == TorchConfig().timeout_s:
        config.timeout_s = math.ceil(collective_timeout_s)
    if config.backend is None and not getattr(scaling_config, "use_tpu", False):
        # Reports and health go over Gloo, so that a boundary costs the device no synchronization.
        config.backend = "cpu:gloo,cuda:nccl" if scaling_config.use_gpu else "gloo"
    return config


def _run_config(
    given: RunConfig | None, checkpoint_keep: int | None, *, keeps_warm_workers: bool
) -> RunConfig:
    config: Any = copy.copy(given) if given is not None else RunConfig()
    theirs = config.checkpoint_config or CheckpointConfig()
    if theirs.num_to_keep is None and theirs.checkpoint_score_attribute is None:
        config.checkpoint_config = dataclasses.replace(theirs, num_to_keep=checkpoint_keep)
    config.callbacks = [*(config.callbacks or []), EndsHopelessRuns(), IndexCopy()]
    if keeps_warm_workers:
        config.worker_runtime_env = with_setup_hook(config.worker_runtime_env or {})
        config.callbacks.append(WarmWorkers())
    return config  # type: ignore[no-any-return]


def _max_failures(config: RunConfig) -> int:
    return config.failure_config.max_failures if config.failure_config is not None else 0


def _dataset_config(given: DataConfig | None, ranks_per_replica: int) -> DataConfig | None:
    if ranks_per_replica == 1:
        return given  # no worker is ever left over
    return MembersDataConfig(given or DataConfig(), ranks_per_replica)


def _require_at_least_one(name: str, value: int, remedy: str) -> None:
    if value < 1:
        raise ConfigError(f"{name}={value} must be at least 1; {remedy}")
