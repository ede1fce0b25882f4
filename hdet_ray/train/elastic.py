"""Elastic sizes: how many replicas a number of workers makes, and the Ray settings that make a change quick.

Ray knows workers, not replicas. Any number of them between min and max may come; N = workers // g of
them form replicas, what is left over idles until the next change.
"""

from __future__ import annotations

import copy
import math
from typing import Any

from ray.train import ScalingConfig

from hdet_ray.exceptions import ConfigError
from hdet_ray.optim.mesh import check_ranks_per_replica

SHORTEST_COLLECTIVE_TIMEOUT_S = 10
"""With less, Ray's check of a worker, and ours, take a busy process for a stopped one."""


def workers_in_replicas(num_workers: int, ranks_per_replica: int) -> int:
    """How many of the workers form replicas: the first ones, as ranks go."""
    return num_workers - num_workers % ranks_per_replica


def elastic_scaling(given: ScalingConfig, ranks_per_replica: int) -> ScalingConfig:
    """A scaling config whose every size makes at least one replica.

    Args:
        given: As Ray takes it; stays as it was.
        ranks_per_replica: Group size g.

    Returns:
        The same, with the minimum raised to one replica: below it Ray waits for workers.

    Raises:
        ConfigError: No size within the range makes a replica, or a fixed number leaves workers over.
    """
    sizes: Any = given.num_workers  # the typed class is that of Ray's old API
    if isinstance(sizes, int):
        if sizes:  # 0 is Ray's local mode
            check_ranks_per_replica(sizes, ranks_per_replica)
        return given
    smallest, largest = sizes
    if smallest < 1:
        raise ConfigError(
            f"num_workers=({smallest}, {largest}): the minimum {smallest} must be at least 1; (1, {largest}) "
            "goes on as long as a single worker is left"
        )
    if smallest > largest:
        raise ConfigError(f"num_workers=({smallest}, {largest}): the minimum is above the maximum; swap them")
    if largest < ranks_per_replica:
        raise ConfigError(
            f"num_workers=({smallest}, {largest}) never makes a replica of ranks_per_replica="
            f"{ranks_per_replica} ranks; use a maximum of at least {ranks_per_replica}, or smaller replicas"
        )
    if smallest >= ranks_per_replica:
        return given
    raised: Any = copy.copy(given)
    raised.num_workers = (ranks_per_replica, largest)
    return raised  # type: ignore[no-any-return]


def recovery_settings(collective_timeout_s: float) -> dict[str, str]:
    """Environment of a run's controller under which a change of workers is seen and made soon.

    Ray reads it in the driver and hands it on. What a user has set stays.

    Args:
        collective_timeout_s: After how many seconds a rank that hangs counts as lost.
    """
    hang_s = max(SHORTEST_COLLECTIVE_TIMEOUT_S, math.ceil(collective_timeout_s))
    return {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
        # After a lost node Ray first tries the old size: its view of resources is stale for up to 20 s.
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "5",
        # Ray's default of 600 s leaves a stopped process unseen for ten minutes.
        "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": str(hang_s),
        # `ray.train.report` and its like; Ray's default is to wait for ever.
        "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": str(hang_s),
        "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    }
