"""What does `step(loss)` cost beside torch's `OneCycleLR.step()`, off a boundary and with the spread on?

Rank 0 of two Gloo ranks times both in turn in blocks that each compute one chunk of the rate table, so that
no step is counted without its share of that. `overhead_us_one_group` is the median of the differences (bound:
3), `ratio_four_groups` that of the ratios (bound: 1.3). What the scheduler's hooks add to `optimizer.step()`
stands beside them. Then 100,000 steps with a boundary every 100, once for the process's resident memory and
once under tracemalloc: `rss_growth_bytes` and `tracemalloc_growth_bytes`.
"""

from __future__ import annotations

import argparse
import gc
import os
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from benchmarks.measure import print_table, ratios, summary, write_result
from benchmarks.ranks import measure_on_ranks
from hdet_ray.config import Fixed
from hdet_ray.optim.scheduler import HDETOneCycleLR
from hdet_ray.optim.table import CHUNK_STEPS

NUM_RANKS = 2
BLOCKS_PER_ROUND = 14
ROUND_STEPS = (1 + BLOCKS_PER_ROUND + 1) * CHUNK_STEPS
"""Untimed are the first chunk, which the boundary before computes, and the last, which ends at a boundary."""
MEMORY_ROUND_STEPS = 100
MAX_LR = 1e-3
BOUNDS = {"overhead_us_one_group": 3.0, "ratio_four_groups": 1.3}


def make_optimizer(num_groups: int) -> Optimizer:
    """AdamW whose parameters never get a gradient: its step runs the hooks and little else."""
    return AdamW([{"params": [torch.nn.Parameter(torch.zeros(4))]} for _ in range(num_groups)], lr=MAX_LR)


def make_loss() -> Tensor:
    """A 0-d loss with a graph behind it, as a loop has one."""
    weight = torch.nn.Parameter(torch.tensor(1.5))
    return weight * weight


def make_scheduler(optimizer: Optimizer, total_steps: int, round_steps: int) -> HDETOneCycleLR:
    """Fan-out and converge around a one-cycle base."""
    controller = Fixed(alpha=1 / 9, sync_every=round_steps)
    return HDETOneCycleLR(optimizer, max_lr=MAX_LR, total_steps=total_steps, controller=controller)


def time_block(
    optimizer: Optimizer, step: Callable[..., object], losses: tuple[Tensor, ...]
) -> tuple[float, float]:
    """Microseconds of one optimizer step and of one scheduler step, means over a chunk of the table."""
    clock = time.perf_counter_ns
    update_ns = step_ns = 0
    for _ in range(CHUNK_STEPS):
        began = clock()
        optimizer.step()
        between = clock()
        step(*losses)
        ended = clock()
        update_ns += between - began
        step_ns += ended - between
    return update_ns / CHUNK_STEPS / 1000, step_ns / CHUNK_STEPS / 1000


def compare_steps(num_groups: int, rounds: int) -> dict[str, list[float]]:
    """Time both schedulers in turn; the i-th entries of all lists were taken side by side."""
    total_steps = rounds * ROUND_STEPS
    our_optimizer, torch_optimizer = make_optimizer(num_groups), make_optimizer(num_groups)
    ours = make_scheduler(our_optimizer, total_steps, ROUND_STEPS)
    theirs = OneCycleLR(torch_optimizer, max_lr=MAX_LR, total_steps=total_steps)
    losses = (make_loss(),)

    def advance(num_steps: int) -> None:
        for _ in range(num_steps):
            our_optimizer.step()
            ours.step(*losses)

    us: dict[str, list[float]] = {name: [] for name in ("ours", "torch", "our update", "torch's update")}
    sides = [
        ("ours", "our update", our_optimizer, ours.step, losses),
        ("torch", "torch's update", torch_optimizer, theirs.step, ()),
    ]
    for _ in range(rounds):
        advance(CHUNK_STEPS)
        dist.barrier()  # Rank 1 waits while rank 0 is timed, and takes the same steps afterwards.
        if dist.get_rank() == 0:
            for _ in range(BLOCKS_PER_ROUND):
                sides.reverse()
                for step_name, update_name, optimizer, step, arguments in sides:
                    update_us, step_us = time_block(optimizer, step, arguments)
                    us[step_name].append(step_us)
                    us[update_name].append(update_us)
        dist.barrier()
        if dist.get_rank() != 0:
            advance(BLOCKS_PER_ROUND * CHUNK_STEPS)
        advance(CHUNK_STEPS)
    return us


def measure_memory(num_steps: int) -> dict[str, int]:
    """Bytes that stay after many rounds: of the process, and of Python's objects.

    As many steps go before: allocators take hundreds of rounds to settle.
    """
    optimizer, loss = make_optimizer(num_groups=4), make_loss()
    scheduler = make_scheduler(optimizer, 4 * num_steps, MEMORY_ROUND_STEPS)

    def growth(used_bytes: Callable[[], int]) -> int:
        before = 0
        for _ in range(2):
            before = used_bytes()
            for _ in range(num_steps):
                optimizer.step()
                scheduler.step(loss)
        return used_bytes() - before

    rss_growth = growth(resident_bytes)
    tracemalloc.start()
    traced_growth = growth(traced_bytes)
    tracemalloc.stop()
    return {"rss_growth_bytes": rss_growth, "tracemalloc_growth_bytes": traced_growth}


def resident_bytes() -> int:
    """Resident memory of this process."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def traced_bytes() -> int:
    """What Python holds of all that it has allocated since tracemalloc was started."""
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def run_rank(rounds: int, memory_steps: int) -> dict[str, Any]:
    """Everything that one rank does."""
    return {
        "us": {num_groups: compare_steps(num_groups, rounds) for num_groups in (1, 4)},
        "memory": measure_memory(memory_steps),
    }


def differences(larger: list[float], smaller: list[float]) -> list[float]:
    """Differences of timings that were taken side by side."""
    return [a - b for a, b in zip(larger, smaller, strict=True)]


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="fewer rounds, and no file unless --output is given"
    )
    parser.add_argument("--output", type=Path, default=None, help="the JSON file to write")
    arguments = parser.parse_args()

    rounds, memory_steps = (10, 20_000) if arguments.quick else (60, 100_000)
    measured = measure_on_ranks(run_rank, NUM_RANKS, rounds, memory_steps)
    spread: dict[str, dict[str, float]] = {}
    for num_groups, word in ((1, "one_group"), (4, "four_groups")):
        us = measured["us"][num_groups]
        spread[f"step_us_{word}"] = summary(us["ours"])
        spread[f"torch_step_us_{word}"] = summary(us["torch"])
        spread[f"overhead_us_{word}"] = summary(differences(us["ours"], us["torch"]))
        spread[f"ratio_{word}"] = summary(ratios(us["ours"], us["torch"]))
        spread[f"hooks_us_{word}"] = summary(differences(us["our update"], us["torch's update"]))

    columns = ("median", "p10", "p90", "min", "n")
    rows = [[name, *(figure[c] for c in columns)] for name, figure in spread.items()]
    print_table(f"one step, blocks of {CHUNK_STEPS} in turn", ["", *columns], rows)
    memory_rows = [[name, value] for name, value in measured["memory"].items()]
    print_table(f"memory over {memory_steps:,} steps", ["", "bytes"], memory_rows)

    if arguments.output or not arguments.quick:
        payload = {
            **{name: figure["median"] for name, figure in spread.items()},
            **measured["memory"],
            "memory_steps": memory_steps,
            "bounds": BOUNDS,
            "spread": spread,
        }
        print(f"\nwritten to {write_result('scheduler_step', payload, arguments.output)}")


if __name__ == "__main__":
    main()
