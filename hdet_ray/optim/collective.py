"""Collective: everything that ranks tell each other, in one place.

Reports and decisions travel over Gloo as a few floats on the host, so that nothing waits for a device;
gradients and averages use the groups of the tensors' own backend. Groups for teams are made once, at
start, because making one is itself a collective of all ranks.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from hdet_ray.exceptions import CollectiveError, ConfigError, HDETError
from hdet_ray.optim.buckets import backends_of
from hdet_ray.optim.mesh import current_session, replica_ranks

T = TypeVar("T")
Teams = Sequence[int | None]


@dataclass(frozen=True, slots=True)
class Team:
    """The ranks that share gradients with this one."""

    group: dist.ProcessGroup | None
    """``None``: this rank alone."""
    size: int
    is_whole_world: bool


@dataclass(slots=True)
class Collective:
    """The ranks of one run, as replicas of equal size.

    ``grid[replica][i]`` is a global rank; this process is rank ``index`` of ``replica``.
    """

    grid: tuple[tuple[int, ...], ...]
    replica: int
    index: int
    world: dist.ProcessGroup | None
    """All ranks of the run; ``None`` where there is one process only."""
    host: dist.ProcessGroup | None
    """The same ranks over a backend that carries host tensors."""
    _groups: dict[tuple[int, ...], dist.ProcessGroup] = field(default_factory=dict)

    @classmethod
    def connect(
        cls, process_group: dist.ProcessGroup | None = None, mesh: DeviceMesh | None = None
    ) -> Collective:
        """Find the ranks of this run; collective where there are several.

        Raises:
            ConfigError: a group or ``WORLD_SIZE`` > 1 without an initialized torch.distributed, or a rank
                that is no member.
        """
        if not (dist.is_available() and dist.is_initialized()):
            _require_single_process(process_group, mesh)
            return cls(grid=((0,),), replica=0, index=0, world=None, host=None)
        grid = replica_ranks(mesh, process_group)
        ranks = tuple(rank for row in grid for rank in row)
        own = dist.get_rank()
        if own not in ranks:
            raise ConfigError(
                f"rank {own} takes no part in this run's ranks {list(ranks)}; build the scheduler on those "
                "only"
            )
        if len(ranks) == 1:
            return cls(grid=grid, replica=0, index=0, world=None, host=None)
        world = process_group or _default_or_new(ranks)
        host = world if backends_of(world).get("cpu") == "gloo" else _new_group(ranks, backend="gloo")
        place = next((r, i) for r, row in enumerate(grid) for i, rank in enumerate(row) if rank == own)
        self = cls(grid=grid, replica=place[0], index=place[1], world=world, host=host)
        self._groups[tuple(sorted(ranks))] = world
        self.prepare([range(r, r + 1) for r in range(len(grid))])
        for i in range(self.ranks_per_replica):
            self._make_group([row[i] for row in grid])
        return self

    @property
    def num_replicas(self) -> int:
        """N."""
        return len(self.grid)

    @property
    def ranks_per_replica(self) -> int:
        """g."""
        return len(self.grid[0])

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return self.num_replicas * self.ranks_per_replica

    @property
    def rank(self) -> int:
        """This process's rank among the run's: ``replica * ranks_per_replica + index``."""
        return self.replica * self.ranks_per_replica + self.index

    @property
    def peers(self) -> dist.ProcessGroup | None:
        """The ranks of this index in every replica: an average's bytes per rank fall with g."""
        if self.world is None:
            return None
        return self._groups[tuple(sorted(row[self.index] for row in self.grid))]

    def prepare(self, teams: Iterable[Iterable[int]]) -> None:
        """Make the groups of these sets of replicas; collective, the same on every rank."""
        if self.world is None:
            return
        for replicas in teams:
            self._make_group([rank for r in replicas for rank in self.grid[r]])

    def team(self, teams: Teams) -> Team:
        """This rank's team under a plan.

        Raises:
            CollectiveError: a set of replicas that was not prepared.
        """
        own = teams[self.replica]
        members = [self.replica] if own is None else [r for r, t in enumerate(teams) if t == own]
        ranks = tuple(sorted(rank for r in members for rank in self.grid[r]))
        if len(ranks) == 1:
            return Team(None, 1, self.world_size == 1)
        if ranks not in self._groups:
            raise CollectiveError(f"no process group was prepared for the team of ranks {list(ranks)}")
        return Team(self._groups[ranks], len(ranks), len(ranks) == self.world_size)

    def gather_row(self, row: Sequence[float]) -> list[list[float]]:
        """Every rank's row of floats, by rank; rows are equally long on all ranks."""
        if self.host is None:
            return [list(row)]
        own = torch.tensor(row, dtype=torch.float64)
        rows = [torch.empty_like(own) for _ in range(self.world_size)]
        dist.all_gather(rows, own, group=self.host)
        return [r.tolist() for r in self._by_rank(rows)]

    def gather_objects(self, item: T) -> list[T]:
        """Every rank's picklable object, by rank: for what is rare."""
        if self.host is None:
            return [item]
        items: list[Any] = [None] * self.world_size
        dist.all_gather_object(items, item, group=self.host)
        return self._by_rank(items)

    def is_same_on_peers(self, item: object) -> bool:
        """Whether the ranks of this index in every replica give equal objects; collective of all ranks."""
        peers = self.gather_objects(item)[self.index :: self.ranks_per_replica]
        return all(peer == item for peer in peers)

    def broadcast_object(self, item: T | None) -> T:
        """Rank 0's picklable object, on every rank."""
        if self.host is None:
            return item  # type: ignore[return-value]
        box: list[Any] = [item]
        dist.broadcast_object_list(box, src=self.grid[0][0], group=self.host)
        return box[0]  # type: ignore[no-any-return]

    def agree(self, error: HDETError | None) -> None:
        """Raise on every rank what any rank found, so that none waits for one that has given up.

        Raises:
            HDETError: this rank's own error, or one of the same type that names the rank that had it.
        """
        found = self.gather_objects(None if error is None else (type(error), str(error)))
        if error is not None:
            raise error
        for rank, other in enumerate(found):
            if other is not None:
                kind, message = other
                raise kind(f"on rank {rank}: {message}")

    def _by_rank(self, gathered: list[T]) -> list[T]:
        """From the group's order of ranks to this run's (they differ where a mesh permutes ranks)."""
        if self.host is None:
            return gathered
        order = dist.get_process_group_ranks(self.host)
        place = {rank: i for i, rank in enumerate(order)}
        return [gathered[place[rank]] for row in self.grid for rank in row]

    def _make_group(self, ranks: Sequence[int]) -> None:
        key = tuple(sorted(ranks))
        if len(key) > 1 and key not in self._groups and dist.get_rank() in key:
            self._groups[key] = _new_group(key)


def _require_single_process(process_group: dist.ProcessGroup | None, mesh: DeviceMesh | None) -> None:
    if process_group is not None or mesh is not None:
        raise ConfigError(
            "a process group or mesh was given but torch.distributed is not initialized; "
            "call torch.distributed.init_process_group first"
        )
    world_size = os.environ.get("WORLD_SIZE", "1")
    if world_size != "1":
        raise ConfigError(
            f"WORLD_SIZE={world_size} but torch.distributed is not initialized; call "
            "torch.distributed.init_process_group before the scheduler is made"
        )


def _default_or_new(ranks: Sequence[int]) -> dist.ProcessGroup:
    default = dist.group.WORLD
    if default is None or sorted(ranks) != dist.get_process_group_ranks(default):
        return _new_group(ranks)
    return default


def _new_group(ranks: Sequence[int], backend: str | None = None) -> dist.ProcessGroup:
    # Local synchronization: only members call, so several runs can live side by side in one world.
    timeout_s = current_session().collective_timeout_s
    return dist.new_group(  # type: ignore[no-any-return]
        sorted(ranks),
        # A new group does not inherit the default group's timeout: torch's own is 30 minutes.
        timeout=None if timeout_s is None else timedelta(seconds=timeout_s),
        backend=backend,
        use_local_synchronization=True,
    )
