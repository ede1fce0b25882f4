"""How many steps per second does a training loop keep beside DDP with torch's `OneCycleLR`?

Four Gloo ranks train a byte model under four schedulers, all in the same processes and in turn: a slice of 10
steps each, ten slices to a round of 100 with its boundary. Processes are started anew several times, with the
sides made in another order: where a side's memory comes to lie is worth 1 to 2 %, for as long as it lives.
A pair is one such round of DDP and one of ours:
DDP's seconds over ours, the median with a 95 % interval. `fixed_shared_ratio` (`Fixed(alpha=1/9)`) and
`auto_ratio` (`Auto` after its search) are to stay above 0.97 with their lower end, `fixed_local_ratio` (no
gradients are exchanged) above 1. The same for a smaller model stands beside it.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from benchmarks.measure import print_table, ratios, summary, write_result
from benchmarks.ranks import measure_on_ranks
from benchmarks.training import MILLION, SMALL, Loop
from hdet_ray.config import Auto, Controller, Fixed
from hdet_ray.workloads.byte_lm import Settings

NUM_RANKS = 4
NUM_STARTS = 5
ROUND_STEPS = 100
SLICE_STEPS = 10
TOTAL_STEPS = 20_000
CONTROLLERS: dict[str, Controller | None] = {
    "ddp": None,
    "fixed_shared": Fixed(alpha=1 / 9, sync_every=ROUND_STEPS),
    "auto": Auto(sync_every=ROUND_STEPS),
    "fixed_local": Fixed(alpha=1 / 9, sync_every=ROUND_STEPS, gradient_sync="local"),
}
LOWER_BOUNDS = {"fixed_shared_ratio": 0.97, "auto_ratio": 0.97, "fixed_local_ratio": 1.0}


def run_rank(settings: Settings, pairs: int, start: int) -> dict[str, Any]:
    """Time rounds of every side, the first of them uncounted."""
    settings = replace(settings, total_steps=TOTAL_STEPS)
    names = [*CONTROLLERS]
    names = names[start % len(names) :] + names[: start % len(names)]
    loops = {name: Loop(settings, CONTROLLERS[name]) for name in names}
    loops["auto"].search()  # What it costs is another question: `benchmarks/search.py`.
    rounds = [time_round(loops, first=pair % len(loops)) for pair in range(1 + pairs)]
    return {
        "seconds": {name: [round_[name] for round_ in rounds[1:]] for name in loops},
        "parameters": loops["ddp"].num_parameters,
    }


def measure(settings: Settings, pairs: int, starts: int) -> dict[str, Any]:
    """Rounds of every side over all starts."""
    measured = [
        measure_on_ranks(run_rank, NUM_RANKS, settings, -(-pairs // starts), start) for start in range(starts)
    ]
    seconds = {name: [s for one in measured for s in one["seconds"][name]] for name in CONTROLLERS}
    return {"seconds": seconds, "parameters": measured[0]["parameters"]}


def time_round(loops: Mapping[str, Loop], first: int) -> dict[str, float]:
    """Seconds of a round of each side, in slices in turn: what else the machine does falls on all alike."""
    names = [*loops]
    names = names[first:] + names[:first]
    seconds = dict.fromkeys(names, 0.0)
    for _ in range(ROUND_STEPS // SLICE_STEPS):
        for name in names:
            dist.barrier()
            began = time.perf_counter()
            loops[name].advance(SLICE_STEPS)
            dist.barrier()  # A slice has ended when the slowest rank has ended it.
            seconds[name] += time.perf_counter() - began
        names.reverse()
    if not all(loop.ours.is_boundary for loop in loops.values() if loop.ours is not None):
        raise SystemExit(f"{ROUND_STEPS} steps did not end at a boundary")
    return seconds


def median_with_interval(values: Sequence[float]) -> dict[str, float]:
    """The median, and the order statistics that hold the true one in 95 % of samples, whatever the noise."""
    count = len(values)
    ordered = sorted(values)
    outside, below = 0.0, 0
    # The number of values below the true median is binomial: leave at most 2.5 % at each end.
    while below < count // 2:
        outside += math.comb(count, below) / 2**count
        if outside > 0.025:
            break
        below += 1
    edge = max(below - 1, 0)
    return {**summary(values), "low": ordered[edge], "high": ordered[count - 1 - edge]}


def compare(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Steps per second of each of ours over DDP's."""
    return {
        f"{name}_ratio": median_with_interval(ratios(seconds["ddp"], seconds[name]))
        for name in CONTROLLERS
        if name != "ddp"
    }


def print_comparison(measured: dict[str, Any], figures: dict[str, dict[str, float]]) -> None:
    """Tables of one model."""
    per_second = {name: [ROUND_STEPS / s for s in times] for name, times in measured["seconds"].items()}
    speeds = {name: summary(values) for name, values in per_second.items()}
    title = f"{measured['parameters']:,} parameters, {NUM_RANKS} Gloo ranks, T = {ROUND_STEPS}: steps/s"
    for text, rows, columns in (
        (title, speeds, ["median", "p10", "p90", "n"]),
        ("against DDP, side by side", figures, ["median", "low", "high", "p10", "p90", "n"]),
    ):
        table = [[name, *(row[column] for column in columns)] for name, row in rows.items()]
        print_table(text, ["", *columns], table)


def main() -> None:
    """Measure, print tables, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="the smaller model only, and no file unless --output is given"
    )
    parser.add_argument("--pairs", type=int, default=None, help="rounds of each side")
    parser.add_argument("--output", type=Path, default=None, help="the JSON file to write")
    arguments = parser.parse_args()

    pairs = arguments.pairs or (6 if arguments.quick else 40)
    starts = 1 if arguments.quick else NUM_STARTS
    models = {"": SMALL} if arguments.quick else {"": MILLION, "_small": SMALL}
    payload: dict[str, Any] = {
        "ranks": NUM_RANKS,
        "backend": "gloo",
        "sync_every": ROUND_STEPS,
        "starts": starts,
        "bounds": {"low": LOWER_BOUNDS},
    }
    for suffix, settings in models.items():
        measured = measure(settings, pairs, starts)
        figures = compare(measured["seconds"])
        print_comparison(measured, figures)
        payload |= {f"{name}{suffix}": figure for name, figure in figures.items()}
        payload[f"parameters{suffix}"] = measured["parameters"]
        payload[f"seconds{suffix}"] = {name: summary(times) for name, times in measured["seconds"].items()}
    if arguments.output or not arguments.quick:
        print(f"\nwritten to {write_result('throughput', payload, arguments.output)}")


if __name__ == "__main__":
    main()
