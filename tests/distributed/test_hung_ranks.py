"""A rank that is stopped: real processes, a real store, and a real collective that waits for it."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
from datetime import timedelta
from multiprocessing.process import BaseProcess
from typing import Any

import pytest
import torch
import torch.distributed as dist

from hdet_ray.exceptions import CollectiveError
from hdet_ray.train.liveness import Liveness

NUM_RANKS = 3
BEAT_S = 0.2
HANG_S = 2.0
TIMEOUT_S = 8.0
"""Of the collectives."""
DEADLINE_S = 60.0


def beat_and_stop(rank: int, port: int, stopped: int, is_watched: bool, told: Any, done: Any) -> None:
    """Train for a few steps, stop one rank in mid-round, and say whom the others name."""
    store = dist.TCPStore("127.0.0.1", port, is_master=rank == 0, wait_for_workers=False)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=NUM_RANKS, timeout=timedelta(seconds=TIMEOUT_S)
    )
    noticed: queue.SimpleQueue[CollectiveError] = queue.SimpleQueue()
    liveness = Liveness(
        dist.TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False),
        rank=rank,
        num_ranks=NUM_RANKS,
        node=f"node-{rank}",
        hang_s=HANG_S if is_watched else 10 * DEADLINE_S,
        on_hang=noticed.put,
        interval_s=BEAT_S,
    )
    step = 0
    liveness.progress = lambda: (step // 5, step)
    liveness.start()
    all_heard = threading.Event()
    while not all_heard.is_set() or step < 12:
        heard = [float(len(liveness._heard) == (1 if rank else NUM_RANKS - 1))]  # rank 0 listens to all
        total = torch.tensor(heard)
        dist.all_reduce(total)
        if total.item() == NUM_RANKS:
            all_heard.set()
        step += 1
    if rank == stopped:
        told.put((rank, os.getpid(), step))
        told.close()
        told.join_thread()
        os.kill(os.getpid(), signal.SIGSTOP)
    if is_watched:
        told.put((rank, str(noticed.get(timeout=DEADLINE_S)), step))
    else:
        try:
            dist.all_reduce(torch.zeros(1))
        except RuntimeError as error:
            told.put((rank, str(liveness.named(error)), step))
    done.wait(DEADLINE_S)  # a rank that has failed goes on beating: the others still look for the silent one


def run(stopped: int, *, is_watched: bool) -> dict[int, tuple[Any, int]]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch.distributed"])
    listener = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    port = listener.port
    del listener
    told, done = context.Queue(), context.Event()
    ranks: list[BaseProcess] = [
        context.Process(target=beat_and_stop, args=(rank, port, stopped, is_watched, told, done))
        for rank in range(NUM_RANKS)
    ]
    for process in ranks:
        process.start()
    try:
        return {
            rank: (said, step)
            for rank, said, step in (told.get(timeout=DEADLINE_S) for _ in range(NUM_RANKS))
        }
    finally:
        done.set()
        for process in ranks:
            process.kill()
            process.join()


@pytest.mark.parametrize("stopped", [0, 2])
def test_a_stopped_rank_is_named_before_the_collective_times_out(stopped: int) -> None:
    said = run(stopped, is_watched=True)
    pid, step = said.pop(stopped)
    for message, _ in said.values():
        assert f"rank {stopped} " in message
        assert "no sign of life for 2 s" in message
    message, _ = said[0 if stopped else 1]
    assert f"(node node-{stopped}, pid {pid})" in message
    assert f"waits in round {step // 5} at step {step}" in message


def test_a_collective_that_timed_out_names_the_stopped_rank(tmp_path: Any) -> None:
    said = run(2, is_watched=False)
    pid, _ = said.pop(2)
    for message, _ in said.values():
        assert f"rank 2 (node node-2, pid {pid}) has been silent for" in message
        assert "a collective failed:" in message
