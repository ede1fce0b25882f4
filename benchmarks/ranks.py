"""Ranks: one function on several Gloo processes with one thread each, and rank 0's answer."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

_COLLECTIVE_TIMEOUT = timedelta(minutes=2)


def measure_on_ranks(function: Callable[..., Any], num_ranks: int, *args: Any) -> Any:
    """Call ``function(*args)`` on every rank of one new group.

    Args:
        function: A module's top-level function; the default process group is ready when it is called.
        num_ranks: World size.
        args: Picklable, the same for every rank.

    Returns:
        What it returned on rank 0.

    Raises:
        ProcessRaisedException: a rank failed; the others are ended.
    """
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_run_rank, args=(function, num_ranks, args, folder), nprocs=num_ranks, join=True)
        return torch.load(Path(folder) / "answer.pt", weights_only=False)


def _run_rank(
    rank: int, function: Callable[..., Any], num_ranks: int, args: tuple[Any, ...], folder: str
) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "store"), num_ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=num_ranks, timeout=_COLLECTIVE_TIMEOUT)
    answer = function(*args)
    if rank == 0:
        torch.save(answer, Path(folder) / "answer.pt")
    dist.barrier()
    dist.destroy_process_group()
