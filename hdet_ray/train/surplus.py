"""Surplus workers: they train nothing, and join what Ray makes collective.

A `ray.train.report` is taken when every worker of the group has made it. Rank 0 writes each such call into
the group's store before it makes it; a surplus worker reads them in order and makes the same, empty-handed,
until rank 0's loop ends. A worker that is left over today is the next change's rank.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Protocol

import torch.distributed as dist
from ray.train import DataConfig
from ray.train.v2._internal.execution.train_fn_utils import TrainFnUtils
from ray.train.v2.api.context import DistributedTrainContext
from ray.train.v2.api.report_config import CheckpointUploadMode

from hdet_ray.exceptions import CollectiveError
from hdet_ray.train.elastic import workers_in_replicas

logger = logging.getLogger(__name__)

_COLLECTIVE_CALLS = ("report", "get_preemption_info", "barrier", "broadcast_from_rank_zero")
"""Methods of Ray's `TrainFnUtils` that wait for every worker."""
_END = "end"
_KEPT_CALLS = 1000
"""A surplus worker is at most as many calls behind: Ray lets none of them run ahead."""
_WAIT = timedelta(seconds=5)


class Store(Protocol):
    """What is used of a `torch.distributed.Store`."""

    def set(self, key: str, value: str) -> None: ...

    def get(self, key: str) -> bytes: ...

    def wait(self, keys: list[str], timeout: timedelta) -> None: ...

    def delete_key(self, key: str) -> bool: ...


class Leader:
    """Rank 0's side: announces each collective call of Ray's to the surplus workers."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._num_calls = 0

    def announce_calls_of(self, utils: TrainFnUtils) -> None:
        """From now on every collective call through this object is announced."""
        for name in _COLLECTIVE_CALLS:
            vars(utils)[name] = self._announced(name, getattr(utils, name))

    def end(self) -> None:
        """Let the surplus workers go."""
        self._announce(_END)

    def _announced(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def announced(*args: Any, **options: Any) -> Any:
            self._announce(name)
            return call(*args, **options)

        return announced

    def _announce(self, name: str) -> None:
        self._store.set(_key(self._num_calls), json.dumps(name))
        if self._num_calls >= _KEPT_CALLS:
            self._store.delete_key(_key(self._num_calls - _KEPT_CALLS))
        self._num_calls += 1


def follow(store: Store, utils: TrainFnUtils) -> int:
    """Make rank 0's collective calls with it until its loop ends.

    Args:
        store: The group's.
        utils: Ray's, of this worker.

    Returns:
        How many calls there were.

    Raises:
        CollectiveError: The store is gone, and rank 0 with it.
    """
    number = 0
    while True:
        name = _await_call(store, number)
        if name == _END:
            return number
        if name == "report":
            # In the background: what this worker has to say is nothing, and nobody waits for it.
            utils.report(metrics={}, checkpoint_upload_mode=CheckpointUploadMode.ASYNC)
        elif name == "broadcast_from_rank_zero":
            utils.broadcast_from_rank_zero(None)
        else:
            getattr(utils, name)()
        number += 1


def show_members_only(utils: TrainFnUtils, num_ranks: int) -> None:
    """Let `ray.train.get_context` speak of the workers that form replicas, as the process group does."""
    vars(utils)["get_context"] = lambda: _MembersContext(num_ranks)


class MembersDataConfig(DataConfig):
    """Splits datasets among the workers that form replicas; a surplus worker would be waited for.

    Args:
        given: The user's.
        ranks_per_replica: Group size g.
    """

    def __init__(self, given: DataConfig, ranks_per_replica: int) -> None:
        self.__dict__.update(vars(given))
        self._given = given
        self._ranks_per_replica = ranks_per_replica

    def configure(
        self,
        datasets: dict[str, Any],
        world_size: int,
        worker_handles: list[Any] | None,
        worker_node_ids: list[Any] | None,
        **options: Any,
    ) -> list[dict[str, Any]]:
        num_ranks = workers_in_replicas(world_size, self._ranks_per_replica)
        shards: list[dict[str, Any]] = self._given.configure(
            datasets,
            num_ranks,
            None if worker_handles is None else worker_handles[:num_ranks],
            None if worker_node_ids is None else worker_node_ids[:num_ranks],
            **options,
        )
        # Ray looks every worker's up, by name.
        return shards + [dict.fromkeys(datasets) for _ in range(world_size - num_ranks)]


class _MembersContext(DistributedTrainContext):
    def __init__(self, num_ranks: int) -> None:
        self._num_ranks = num_ranks

    def get_world_size(self) -> int:
        return self._num_ranks

    def get_local_world_size(self) -> int:
        first = self.get_world_rank() - self.get_local_rank()
        return min(super().get_local_world_size(), self._num_ranks - first)


def _await_call(store: Store, number: int) -> str:
    while True:
        try:
            store.wait([_key(number)], _WAIT)
            name: str = json.loads(store.get(_key(number)))
        except dist.DistStoreError:
            continue  # rank 0 computes
        except (dist.DistError, RuntimeError) as error:
            raise CollectiveError(
                f"the store in rank 0's process is gone ({error}); the group starts again without it"
            ) from error
        return name


def _key(number: int) -> str:
    return f"hdet/calls/{number}"
