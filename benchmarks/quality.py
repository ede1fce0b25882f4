"""Does a run from a wrong rate end where the best of a sweep ends? The promise of `auto`, measured.

    python benchmarks/quality.py            # the whole grid, resumable: what is cached is not run again
    python benchmarks/quality.py --quick    # one small cell

A sweep of one-cycle runs half a decade apart gives the best rate (chosen on validation data). Then every
arm starts from that rate, from 30 times less and from 30 times more, and its test loss is compared with
the sweep's best run of the same seed. All arms process the same number of training samples: search
steps are part of the run.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.cells import PARTS, Cell, best_of_sweep, compute_part
from benchmarks.verdicts import print_report

RESULTS = Path(__file__).parent / "results"


def grid() -> list[Cell]:
    """All cells, cheap ones first."""
    kinds: list[dict[str, Any]] = [
        {"workload": "byte_lm", "optimizer": "adamw"},
        {"workload": "byte_lm", "optimizer": "sgd"},
        {"workload": "digits", "optimizer": "adamw"},
        {"workload": "digits", "optimizer": "sgd", "is_bounded": False},
        {
            "workload": "digits",
            "optimizer": "adamw",
            "variant": "repeated",
            "options": {"fresh_noise": False},
            "is_bounded": False,
        },
    ]
    return [
        Cell(num_replicas=n, total_steps=s, **kind)
        for n, s in [(4, 1500), (8, 1500), (4, 3000), (8, 3000)]
        for kind in kinds
        if kind.get("is_bounded", True) or s == 1500
    ] + [
        Cell(
            workload="byte_lm",
            optimizer="adamw",
            num_replicas=4,
            total_steps=1500,
            num_seeds=3,
            on_processes=True,
        )
    ]


def quick_grid() -> list[Cell]:
    """One cell that takes about a minute."""
    return [Cell(workload="digits", optimizer="adamw", num_replicas=4, total_steps=1500, num_seeds=2)]


class Cache:
    """Parts that have been computed, in one JSON file that is replaced whole after each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.data: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"cells": {}}

    def get(self, cell: Cell, part: str) -> list[dict[str, Any]] | None:
        """A part's records, if they were computed with these settings."""
        entry = self.data["cells"].get(cell.key, {})
        return entry.get(part) if entry.get("settings") == _fingerprint(cell) else None

    def put(self, cell: Cell, part: str, records: list[dict[str, Any]]) -> None:
        """Keep a part."""
        entry = self.data["cells"].get(cell.key, {})
        if entry.get("settings") != _fingerprint(cell):
            entry = {"settings": _fingerprint(cell)}
        entry[part] = records
        self.data["cells"][cell.key] = entry
        self.save()

    def save(self) -> None:
        """Write the file: complete, or as it was before."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_suffix(".tmp")
        draft.write_text(json.dumps(self.data, indent=1) + "\n")
        os.replace(draft, self._path)


def run_grid(cells: list[Cell], cache: Cache, jobs: int) -> None:
    """Compute what the cache lacks, ``jobs`` parts at a time."""
    os.environ["OMP_NUM_THREADS"] = "1"
    running: dict[Future[list[dict[str, Any]]], tuple[Cell, str]] = {}
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        while True:
            busy = list(running.values())
            for cell, part in _ready(cells, cache):
                if len(running) >= jobs:
                    break
                if (cell, part) not in busy:
                    best = None if part == "sweep" else best_of_sweep(cache.get(cell, "sweep") or [])
                    running[pool.submit(compute_part, cell, part, best)] = (cell, part)
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                cell, part = running.pop(future)
                cache.put(cell, part, future.result())
                print(f"{cell.key}: {part}", flush=True)


def _ready(cells: list[Cell], cache: Cache) -> Iterator[tuple[Cell, str]]:
    """Parts that can be computed now; those that the promises are about come first."""
    for parts in (PARTS[:3], PARTS[3:]):
        for cell in cells:
            for part in parts:
                is_possible = part == "sweep" or cache.get(cell, "sweep") is not None
                if is_possible and cache.get(cell, part) is None:
                    yield cell, part


def _fingerprint(cell: Cell) -> dict[str, Any]:
    """All that a cell's figures depend on, as JSON gives it back."""
    settings = asdict(cell.settings()) | {"rates": cell.rates, "num_seeds": cell.num_seeds}
    fingerprint: dict[str, Any] = json.loads(json.dumps(settings))
    return fingerprint


def main() -> None:
    """Run the grid and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one small cell, about a minute")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes (default 2)")
    parser.add_argument("--out", type=Path, help="cache and result (default benchmarks/results/quality.json)")
    parser.add_argument("--table", action="store_true", help="print what is cached and run nothing")
    arguments = parser.parse_args()
    out = arguments.out or RESULTS / ("quality_quick.json" if arguments.quick else "quality.json")
    cells = quick_grid() if arguments.quick else grid()
    cache = Cache(out)
    if not arguments.table:
        run_grid(cells, cache, arguments.jobs)
    print_report(cells, cache.data["cells"])


if __name__ == "__main__":
    main()
