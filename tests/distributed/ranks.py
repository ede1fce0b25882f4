"""Real ranks for tests: a function runs on n Gloo ranks, each in a process of its own.

Starting a process that imports torch costs seconds. A fork server that has torch loaded already makes it
tens of milliseconds, so every test gets fresh processes and a fresh process group, and a rank that a test
has broken never meets the next one.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

GRACE_S = 5.0
"""After one rank has failed, the others may wait for it for ever: they get this long to end by themselves."""


class RankFailedError(AssertionError):
    """A rank raised, died, or did not end in time. The text holds every failed rank's traceback."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one rank sent back: its return value, or the traceback that ended it."""

    value: Any = None
    failure: str | None = None


def run_on_ranks(
    function: Callable[..., Any],
    num_ranks: int,
    *args: Any,
    store_path: Path,
    deadline_s: float = 120.0,
) -> list[Any]:
    """Call ``function(rank, *args)`` on ``num_ranks`` ranks of one new Gloo group.

    Args:
        function: A module's top-level function: the processes import it by name. The default process group
            is ready when it is called, and one thread computes on each rank.
        num_ranks: World size.
        args: Picklable, the same for every rank.
        store_path: Folder for the store by which the ranks find each other, usually ``tmp_path``.
        deadline_s: Seconds after which what still runs is ended.

    Returns:
        The return values, by rank. They travel by plain pickle: tensors are copies.

    Raises:
        RankFailedError: A rank raised, died or passed the deadline.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["torch", "torch.distributed", "torch.nn.parallel", "torch._dynamo", "numpy"]
    )
    store_file = store_path / f"store-{time.monotonic_ns()}"
    processes: list[BaseProcess] = []
    receivers: list[Connection] = []
    for rank in range(num_ranks):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(
            target=_run_rank, args=(sender, function, rank, num_ranks, str(store_file), deadline_s, args)
        )
        process.start()
        sender.close()  # The rank holds the only writing end: its death is then seen as the end of the file.
        processes.append(process)
        receivers.append(receiver)
    try:
        outcomes = _collect(receivers, deadline_s)
    finally:
        _end(processes)
    failures = [f"--- rank {rank} ---\n{o.failure}" for rank, o in enumerate(outcomes) if o.failure]
    if failures:
        raise RankFailedError(f"{len(failures)} of {num_ranks} ranks failed\n" + "\n".join(failures))
    return [outcome.value for outcome in outcomes]


def _run_rank(
    sender: Connection,
    function: Callable[..., Any],
    rank: int,
    num_ranks: int,
    store_file: str,
    deadline_s: float,
    args: Sequence[Any],
) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(num_ranks))
    try:
        dist.init_process_group(
            "gloo",
            store=dist.FileStore(store_file, num_ranks),
            rank=rank,
            world_size=num_ranks,
            timeout=timedelta(seconds=deadline_s),
        )
        outcome = pickle.dumps(Outcome(value=function(rank, *args)))
        dist.barrier()  # A rank that leaves early would break a slower one's last collective.
        dist.destroy_process_group()
    except BaseException:  # Whatever ended the rank is what the test wants to read.
        outcome = pickle.dumps(Outcome(failure=traceback.format_exc()))
    # Plain pickle: multiprocessing's own would share a tensor's memory with a process that is about to end.
    sender.send_bytes(outcome)
    sender.close()


def _collect(receivers: Sequence[Connection], deadline_s: float) -> list[Outcome]:
    outcomes = [Outcome(failure=f"did not end within {deadline_s:g} s") for _ in receivers]
    waiting = {id(receiver): rank for rank, receiver in enumerate(receivers)}
    ends_at = time.monotonic() + deadline_s
    while waiting:
        ready = wait([r for r in receivers if id(r) in waiting], timeout=max(0.0, ends_at - time.monotonic()))
        if not ready:
            break
        for receiver in ready:
            rank = waiting.pop(id(receiver))
            try:
                outcomes[rank] = pickle.loads(receiver.recv_bytes())
            except EOFError:
                outcomes[rank] = Outcome(failure="the process died without a word")
            if outcomes[rank].failure:
                ends_at = min(ends_at, time.monotonic() + GRACE_S)
    return outcomes


def _end(processes: Sequence[BaseProcess]) -> None:
    ends_at = time.monotonic() + GRACE_S
    for process in processes:
        process.join(timeout=max(0.0, ends_at - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()
        process.close()
