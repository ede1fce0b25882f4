"""Which ranks make up which replica: N replicas of g data-parallel ranks.

A mesh comes from the user (``mesh=``) or from `HDETTrainer`, which sets a session around the user's loop.
Without either, every rank is a replica of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from hdet_ray.exceptions import ConfigError

REPLICA_DIM = "replica"
GROUP_DIM = "group"


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What a launcher knows and a scheduler needs."""

    mesh: DeviceMesh | None = None
    """``DeviceMesh(("replica", "group"))`` over all ranks."""
    collective_timeout_s: float | None = None
    """After how many seconds a collective of the run's own groups fails; None leaves torch's default."""


class _Sessions:
    """The one session of this process: a training loop runs once in it."""

    current = Session()


def set_session(session: Session | None) -> None:
    """Set the process's session, or clear it."""
    _Sessions.current = session or Session()


def current_session() -> Session:
    """The process's session; an empty one outside a launcher."""
    return _Sessions.current


def replica_ranks(mesh: DeviceMesh | None, group: dist.ProcessGroup | None) -> tuple[tuple[int, ...], ...]:
    """Global ranks of each replica, ``(replica, rank in the replica)``.

    Raises:
        ConfigError: the mesh's dimensions are not ``("replica", "group")``, or a group came with it.
    """
    if mesh is None:
        return tuple((rank,) for rank in dist.get_process_group_ranks(group or dist.group.WORLD))
    if group is not None:
        raise ConfigError("pass mesh= or process_group=, not both: the mesh says which ranks take part")
    if mesh.mesh_dim_names != (REPLICA_DIM, GROUP_DIM):
        raise ConfigError(
            f"mesh has dimensions {mesh.mesh_dim_names}; make it with "
            'init_device_mesh(device, (replicas, ranks_per_replica), mesh_dim_names=("replica", "group"))'
        )
    return tuple(tuple(int(rank) for rank in row) for row in mesh.mesh.tolist())


def check_ranks_per_replica(world_size: int, ranks_per_replica: int) -> int:
    """Number of replicas.

    Raises:
        ConfigError: the group size does not divide the world size.
    """
    if ranks_per_replica < 1:
        raise ConfigError(f"ranks_per_replica={ranks_per_replica} must be at least 1")
    if world_size % ranks_per_replica:
        below = world_size - world_size % ranks_per_replica
        raise ConfigError(
            f"{world_size} ranks can't be divided into replicas of {ranks_per_replica}; "
            f"use {below or ranks_per_replica} ranks, or another ranks_per_replica"
        )
    return world_size // ranks_per_replica
