"""Ranks: one function on several Gloo processes with one thread each, and rank 0's answer."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist


def measure_on_ranks(function: Callable[..., Any], num_ranks: int, *args: Any) -> Any:
    """Call ``function(*args)`` on every rank of one new group.

    Args:
        function: A module's top-level function; the default process group is ready when it is called.
        num_ranks: World size.
        args: Picklable, the same for every rank.

    Returns:
        What it returned on rank 0.

    Raises:
        SystemExit: a rank failed; its traceback stands in the output.
    """
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            context.Process(
                target=_run_rank, args=(function, rank, num_ranks, f"{folder}/store", args, answers)
            )
            for rank in range(num_ranks)
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
    if any(process.exitcode for process in ranks):
        raise SystemExit("a rank failed; its traceback stands above")
    return answers.get()


def _run_rank(
    function: Callable[..., Any], rank: int, num_ranks: int, store: str, args: tuple[Any, ...], answers: Any
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=num_ranks,
        timeout=timedelta(minutes=10),
    )
    answer = function(*args)
    if rank == 0:
        answers.put(answer)
    dist.barrier()
    dist.destroy_process_group()
