"""What does a whole search cost beside as many plain DDP steps?

Four Gloo ranks train a byte model of a million parameters from the same weights, in turn: through the whole
search of `Auto` (scouts, pairs, teams, probes, put-back, every boundary) from a rate 30 times too low, and
through as many steps of DDP with torch's `OneCycleLR`. `search_s_vs_ddp_steps` is the median of the ratios of
their seconds (bound: 1.3); making the scheduler and its process groups stands beside it.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from benchmarks.measure import print_table, ratios, summary, write_result
from benchmarks.ranks import measure_on_ranks
from benchmarks.training import MILLION, SMALL, Loop
from hdet_ray.config import Auto
from hdet_ray.workloads.byte_lm import Settings

NUM_RANKS = 4
TOTAL_STEPS = 3_000
TOO_LOW = 30
BOUND = 1.3


def time_search(settings: Settings) -> dict[str, Any]:
    """Seconds of one search on fresh weights, and where they went."""
    began = _now()
    loop = Loop(settings, Auto())
    made = _now()
    rounds: list[dict[str, Any]] = []
    ours = loop.ours
    if ours is None:
        raise TypeError("a loop with a controller has our scheduler")
    ours.on_boundary(
        lambda event: rounds.append({"phase": event.finished.phase, "wall_s": event.report.facts["wall_s"]})
    )
    num_steps = loop.search()
    ended = _now()
    return {"setup_s": made - began, "search_s": ended - made, "steps": num_steps, "rounds": rounds}


def time_ddp(settings: Settings, num_steps: int) -> float:
    """Seconds of plain steps on fresh weights."""
    loop = Loop(settings, None)
    began = _now()
    loop.advance(num_steps)
    return _now() - began


def run_rank(settings: Settings, repeats: int) -> dict[str, Any]:
    """Search and train in turn, each first equally often; the first pair is not counted."""
    settings = replace(settings, total_steps=TOTAL_STEPS, max_lr=settings.max_lr / TOO_LOW)
    searches: list[dict[str, Any]] = []
    ddp_s: list[float] = []
    num_steps = time_search(settings)["steps"]
    time_ddp(settings, num_steps)
    for repeat in range(repeats):
        if repeat % 2:
            ddp_s.append(time_ddp(settings, num_steps))
        searches.append(time_search(settings))
        if not repeat % 2:
            ddp_s.append(time_ddp(settings, num_steps))
    if any(search["steps"] != num_steps for search in searches):
        raise SystemExit("equal searches took different numbers of steps")
    return {"searches": searches, "ddp_s": ddp_s, "steps": num_steps}


def _now() -> float:
    """The time at which all ranks are here."""
    dist.barrier()
    return time.perf_counter()


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="a smaller model, and no file unless --output is given"
    )
    parser.add_argument("--output", type=Path, default=None, help="the JSON file to write")
    arguments = parser.parse_args()

    settings, repeats = (SMALL, 4) if arguments.quick else (MILLION, 20)
    measured = measure_on_ranks(run_rank, NUM_RANKS, settings, repeats)
    searches = measured["searches"]
    search_s = [search["search_s"] for search in searches]
    phases = [r["phase"] for r in searches[0]["rounds"]]
    spread = {
        "search_s": summary(search_s),
        "ddp_s": summary(measured["ddp_s"]),
        "search_s_vs_ddp_steps": summary(ratios(search_s, measured["ddp_s"])),
        "setup_s": summary([search["setup_s"] for search in searches]),
    }
    columns = ("median", "p10", "p90", "min", "n")
    rows = [[name, *(figure[c] for c in columns)] for name, figure in spread.items()]
    rounds = f"{phases.count('scout')} scouts and {phases.count('pairs')} pairs"
    print_table(f"a search of {measured['steps']} steps ({rounds}), {NUM_RANKS} ranks", ["", *columns], rows)

    if arguments.output or not arguments.quick:
        payload = {
            **{name: figure["median"] for name, figure in spread.items()},
            "bounds": {"search_s_vs_ddp_steps": BOUND},
            "ranks": NUM_RANKS,
            "backend": "gloo",
            "steps": measured["steps"],
            "scouts": phases.count("scout"),
            "pairs": phases.count("pairs"),
            "spread": spread,
        }
        print(f"\nwritten to {write_result('search', payload, arguments.output)}")


if __name__ == "__main__":
    main()
