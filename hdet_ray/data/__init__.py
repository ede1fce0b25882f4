"""Data whose position outlives a restart at any number of ranks: each sample once, and every one counted.

A position here is counted in what all ranks together have taken, so it means the same at any world size.
The ranks are those of the loop's process group: N replicas of g ranks are N * g ranks, and each takes a share
of its own. After a restart a run takes again what it took since the newest complete checkpoint:
``checkpoint_every_rounds`` rounds at most, and without ``checkpoint_sync`` what was trained while that
checkpoint was being stored. Else it repeats and skips nothing. A search round's samples count as any others:
its weights are put back, its data is not.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hdet_ray.data.dataset_shard import DatasetShard, ElasticDataConfig, get_dataset_shard
    from hdet_ray.data.sampler import ElasticSampler

__all__ = ["DatasetShard", "ElasticDataConfig", "ElasticSampler", "get_dataset_shard"]

_MODULE_OF = {
    "DatasetShard": "hdet_ray.data.dataset_shard",
    "ElasticDataConfig": "hdet_ray.data.dataset_shard",
    "ElasticSampler": "hdet_ray.data.sampler",
    "get_dataset_shard": "hdet_ray.data.dataset_shard",
}


def __getattr__(name: str) -> object:
    # Loaded when used: the sampler needs no Ray.
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'hdet_ray.data' has no attribute {name!r}")
    try:
        return getattr(import_module(_MODULE_OF[name]), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "ray":
            raise
        from hdet_ray.exceptions import MissingExtraError

        raise MissingExtraError(
            f"hdet_ray.data.{name} needs ray, which is not installed; run: pip install 'hdet-ray[ray]'"
        ) from error
