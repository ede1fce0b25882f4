"""What does one converge cost beside the cheapest thing that moves as many bytes?

Four Gloo ranks average a transformer's parameters with `Averager`, and in turn all-reduce and scale one flat
tensor of the same bytes (`ratio_vs_flat_allreduce`: width 768, two blocks; width 512, three blocks, stands
beside it, because smaller matrices are copied more); and they average 1,000 small tensors in buckets and one
by one (`speedup_vs_per_parameter`).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.measure import interleaved, print_table, ratios, summary, write_result
from benchmarks.ranks import measure_on_ranks
from hdet_ray.optim.averaging import Averager, average_parameters

NUM_RANKS = 4
NUM_STARTS = 5


def transformer_parameters(width: int, num_blocks: int) -> list[Tensor]:
    """Shapes of a decoder with a vocabulary of 8,192."""
    block = [
        *((width,) for _ in range(4)),
        *((3 * width, width), (3 * width,), (width, width), (width,)),
        *((4 * width, width), (4 * width,), (width, 4 * width), (width,)),
    ]
    return [torch.randn(shape) for shape in [(8192, width), *(block * num_blocks), (width,)]]


def small_parameters() -> list[Tensor]:
    """A thousand tensors of 1 to 4 KiB."""
    return [torch.randn(256 * (1 + i % 4)) for i in range(1000)]


def compare_with_flat(parameters: list[Tensor], repeats: int) -> dict[str, Any]:
    """Time averages of parameters against one all-reduce of one flat tensor and its division."""
    flat = torch.cat([tensor.flatten() for tensor in parameters])
    averager = Averager(parameters, group=None, shares_place=True)
    num_ranks = dist.get_world_size()
    weights = [1.0] * num_ranks

    def flat_all_reduce() -> None:
        dist.all_reduce(flat)
        flat.div_(num_ranks)

    seconds = interleaved(
        {
            "flat all-reduce": flat_all_reduce,
            "Averager": lambda: averager.average(weights),
            "average_parameters": lambda: average_parameters(parameters),
        },
        repeats,
        before_each=dist.barrier,
    )
    return {"bytes": flat.nbytes, "seconds": seconds}


def compare_with_single(parameters: list[Tensor], repeats: int) -> dict[str, Any]:
    """Time averages of many small tensors against an all-reduce and a division for each."""
    averager = Averager(parameters, group=None, shares_place=True)
    num_ranks = dist.get_world_size()
    weights = [1.0] * num_ranks

    def one_by_one() -> None:
        for tensor in parameters:
            dist.all_reduce(tensor)
            tensor.div_(num_ranks)

    seconds = interleaved(
        {"one by one": one_by_one, "Averager": lambda: averager.average(weights)},
        repeats,
        before_each=dist.barrier,
    )
    return {"bytes": sum(tensor.nbytes for tensor in parameters), "seconds": seconds}


def run_rank(repeats: int, start: int) -> dict[str, Any]:
    """What one rank measures; the averages are collective, so all ranks take as long."""
    torch.manual_seed(1000 * start + dist.get_rank())
    return {
        "width 768": compare_with_flat(transformer_parameters(768, num_blocks=2), repeats),
        "width 512": compare_with_flat(transformer_parameters(512, num_blocks=3), repeats),
        "1,000 small": compare_with_single(small_parameters(), max(repeats // 4, 2)),
    }


def measure(repeats: int, starts: int) -> dict[str, Any]:
    """All timings, in order, of processes that start anew: where memory lies moves a ratio a little."""
    measured = [measure_on_ranks(run_rank, NUM_RANKS, repeats, start) for start in range(starts)]
    return {
        name: {
            "bytes": part["bytes"],
            "seconds": {
                side: [s for one in measured for s in one[name]["seconds"][side]] for side in part["seconds"]
            },
        }
        for name, part in measured[0].items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="fewer repeats, and no file unless --output is given"
    )
    parser.add_argument("--output", type=Path, default=None, help="the JSON file to write")
    arguments = parser.parse_args()

    starts = 1 if arguments.quick else NUM_STARTS
    measured = measure(repeats=7 if arguments.quick else 24, starts=starts)
    figures: dict[str, dict[str, float]] = {}
    for name, suffix in (("width 768", ""), ("width 512", "_width_512")):
        seconds = measured[name]["seconds"]
        flat = seconds["flat all-reduce"]
        figures[f"ratio_vs_flat_allreduce{suffix}"] = summary(ratios(seconds["Averager"], flat))
        figures[f"ratio_vs_flat_allreduce_one_shot{suffix}"] = summary(
            ratios(seconds["average_parameters"], flat)
        )
    seconds = measured["1,000 small"]["seconds"]
    figures["speedup_vs_per_parameter"] = summary(ratios(seconds["one by one"], seconds["Averager"]))

    columns = ("median", "p10", "p90", "n")
    for name, part in measured.items():
        rows = [[side, *(summary(values)[c] for c in columns)] for side, values in part["seconds"].items()]
        print_table(
            f"{name}, {part['bytes'] / 1e6:.1f} MB, {NUM_RANKS} Gloo ranks: seconds", ["", *columns], rows
        )
    rows = [[name, *(figure[c] for c in columns)] for name, figure in figures.items()]
    print_table("side by side", ["", *columns], rows)

    if arguments.output or not arguments.quick:
        payload = {
            "ranks": NUM_RANKS,
            "backend": "gloo",
            "starts": starts,
            **{name: figure["median"] for name, figure in figures.items()},
            "spread": figures,
            "bytes": {name: part["bytes"] for name, part in measured.items()},
            "seconds": {
                name: {side: summary(values) for side, values in part["seconds"].items()}
                for name, part in measured.items()
            },
        }
        print(f"\nwritten to {write_result('converge', payload, arguments.output)}")


if __name__ == "__main__":
    main()
