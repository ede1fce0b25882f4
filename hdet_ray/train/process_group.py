"""Process groups of replicas: Ray's torch backend over the workers that form replicas, and no others.

Surplus workers never enter the process group, so the user's loop sees a world of N * g ranks. They learn
where its store is: through it they follow Ray's collective calls (`hdet_ray.train.surplus`).
"""

from __future__ import annotations

import dataclasses
import logging
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
import torch.distributed as dist
from ray.exceptions import RayTaskError
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError
from ray.train.v2._internal.execution.worker_group import ExecutionGroup
from torch._C._distributed_c10d import TCPStore
from torch.distributed.distributed_c10d import PrefixStore

from hdet_ray.train.elastic import workers_in_replicas

logger = logging.getLogger(__name__)


@dataclass
class ReplicaTorchConfig(TorchConfig):
    """A TorchConfig that knows how many ranks a replica has."""

    ranks_per_replica: int = 1

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _ReplicaBackend

    @classmethod
    def of(cls, given: TorchConfig, ranks_per_replica: int) -> ReplicaTorchConfig:
        """The user's settings, with the group size."""
        fields = {field.name: getattr(given, field.name) for field in dataclasses.fields(TorchConfig)}
        return cls(**fields, ranks_per_replica=ranks_per_replica)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where this worker stands in its group."""

    rank: int
    """Ray's world rank."""
    num_workers: int
    num_ranks: int
    """Workers that form replicas: ranks ``0 .. num_ranks - 1``."""
    store_host: str
    store_port: int
    """Where the group's rendezvous store listens, in rank 0's process."""

    @property
    def is_surplus(self) -> bool:
        """This worker is left over: it is part of no replica."""
        return self.rank >= self.num_ranks

    @property
    def num_surplus(self) -> int:
        """Workers that are left over."""
        return self.num_workers - self.num_ranks

    def connect(self, timeout_s: float) -> TCPStore:
        """A client of its own: calls through one client wait for each other."""
        return TCPStore(
            self.store_host,
            self.store_port,
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=timeout_s),
        )


class _Here:
    """The one place of this worker process."""

    place: Place | None = None


def current_place() -> Place | None:
    """This worker's place; None where another backend made the process group."""
    return _Here.place


class _Members(ExecutionGroup):
    """The workers of a group that form replicas."""

    def __init__(self, group: Any, num_ranks: int) -> None:
        self._group = group
        self._num_ranks = num_ranks

    def _assert_active(self) -> None:
        self._group._assert_active()

    def get_workers(self) -> list[Any]:
        members: list[Any] = self._group.get_workers()[: self._num_ranks]
        return members

    def get_resources_per_worker(self) -> dict[str, float]:
        resources: dict[str, float] = self._group.get_resources_per_worker()
        return resources


class _ReplicaBackend(_TorchBackend):
    """Ray's, but for who takes part, and for how it ends."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        num_workers = len(worker_group)
        num_ranks = workers_in_replicas(num_workers, backend_config.ranks_per_replica)
        members = _Members(worker_group, num_ranks)
        try:
            super().on_start(members, backend_config)
            host, port = members.execute_single(0, _store_address)
        except RayTaskError as error:
            # A rank that is lost here is one that Ray replaces; as it stands the error would end the run.
            raise WorkerGroupStartupFailedError(
                f"the process group of {num_ranks} ranks was not made: {error}"
            ) from error
        ray.get(
            [
                worker_group.execute_single_async(rank, _take_place, rank, num_workers, num_ranks, host, port)
                for rank in range(num_workers)
            ]
        )

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        """Leave the group in order where all loops have ended. Else the processes are about to be ended, and
        taking leave of ranks that are gone or stopped costs half a minute."""
        status = worker_group.get_latest_poll_status()
        if status is not None and status.finished and not status.errors:
            super().on_shutdown(worker_group, backend_config)
        elif status is not None and status.errors:
            for worker in worker_group.get_workers():  # as Ray does, when it has waited for their answer
                ray.kill(worker.actor)


def _store_address() -> tuple[str, int]:
    """Runs in rank 0."""
    store: Any = dist.distributed_c10d._get_default_store()
    while isinstance(store, PrefixStore):
        store = store.underlying_store
    return store.host, store.port


def _take_place(rank: int, num_workers: int, num_ranks: int, host: str, port: int) -> None:
    """Runs in each worker. Launchers' variables tell what the process group tells."""
    _Here.place = Place(
        rank=rank, num_workers=num_workers, num_ranks=num_ranks, store_host=host, store_port=port
    )
    if rank < num_ranks < num_workers:
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        first = rank - int(os.environ["LOCAL_RANK"])
        os.environ["WORLD_SIZE"] = str(num_ranks)
        os.environ["LOCAL_WORLD_SIZE"] = str(min(local, num_ranks - first))
