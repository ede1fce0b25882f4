"""Does a run from a wrong rate end where the best of a sweep ends? The promise of `auto`, measured.

    python benchmarks/quality.py            # the whole grid, resumable: what is cached is not run again
    python benchmarks/quality.py --quick    # one small cell
    python benchmarks/quality.py --table --docs docs/quality.md    # write the tables into the page

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

from benchmarks.agreement import compare
from benchmarks.cells import PARTS, Cell, best_of_sweep, compute_part
from benchmarks.measure import RESULTS, describe_machine
from benchmarks.verdicts import report, summarize_cells
from hdet_ray.workloads import load_workload

Records = list[dict[str, Any]]

_BEGIN, _END = "<!-- tables: begin -->", "<!-- tables: end -->"


def grid() -> list[Cell]:
    """All cells, cheap ones first; those on processes, which want the machine for themselves, last."""
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
    simulated = [
        Cell(num_replicas=n, total_steps=s, **kind)
        for n, s in [(4, 1500), (8, 1500), (4, 3000), (8, 3000)]
        for kind in kinds
        if kind.get("is_bounded", True) or s == 1500
    ]
    real = Cell(
        workload="byte_lm",
        optimizer="adamw",
        num_replicas=4,
        total_steps=1500,
        num_seeds=3,
        on_processes=True,
    )
    return [*simulated, real]


def quick_grid() -> list[Cell]:
    """One cell that takes about a minute."""
    return [Cell(workload="digits", optimizer="adamw", num_replicas=4, total_steps=1500, num_seeds=2)]


class Cache:
    """Parts that have been computed, in one JSON file that is replaced whole after each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        is_there = path.exists()
        self.data: dict[str, Any] = json.loads(path.read_text()) if is_there else {"cells": {}}

    def get(self, cell: Cell, part: str) -> Records | None:
        """A part's records, if they were computed with these settings."""
        entry = self.data["cells"].get(cell.key, {})
        return entry.get(part) if entry.get("settings") == _fingerprint(cell) else None

    def put(self, cell: Cell, part: str, records: Records) -> None:
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
        document = {"benchmark": "quality", "machine": describe_machine()} | self.data
        draft.write_text(json.dumps(document, indent=1) + "\n")
        os.replace(draft, self._path)


def run_grid(cells: list[Cell], cache: Cache, jobs: int) -> None:
    """Compute what the cache lacks, ``jobs`` parts at a time."""
    running: dict[Future[Records], tuple[Cell, str]] = {}
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        while True:
            busy = list(running.values())
            for cell, part in _ready(cells, cache):
                if len(running) >= (1 if cell.on_processes else jobs):
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


def check_agreement(total_steps: int = 400) -> dict[str, Any]:
    """One configuration on real ranks and in the simulation, in float64."""
    settings = load_workload("byte_lm").Settings(total_steps=total_steps, max_lr=1e-3)
    return asdict(compare("byte_lm", settings, 4))


def write_into(page: Path, text: str) -> None:
    """Replace what stands between the page's two marks."""
    before, rest = page.read_text().split(_BEGIN)
    after = rest.split(_END)[1]
    page.write_text(f"{before}{_BEGIN}\n{text}\n{_END}{after}")


def main() -> None:
    """Run the grid and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one small cell, about a minute")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes (default 2)")
    parser.add_argument("--out", type=Path, help="cache and result (default benchmarks/results/quality.json)")
    parser.add_argument("--table", action="store_true", help="print what is cached and run nothing")
    parser.add_argument("--docs", type=Path, help="a page with the two marks, between which the tables go")
    arguments = parser.parse_args()
    out = arguments.out or RESULTS / ("quality_quick.json" if arguments.quick else "quality.json")
    cells = quick_grid() if arguments.quick else grid()
    cache = Cache(out)
    if not arguments.table:
        os.environ["OMP_NUM_THREADS"] = "1"  # Read by torch in the processes that are started.
        run_grid(cells, cache, arguments.jobs)
        if not arguments.quick and "agreement" not in cache.data:
            cache.data["agreement"] = check_agreement()
        cache.data["summary"] = summarize_cells(cells, cache.data["cells"])
        cache.save()
    text = report(cells, cache.data["cells"])
    if "agreement" in cache.data:
        text += f"\n\nSimulation against processes, in float64: `{json.dumps(cache.data['agreement'])}`"
    print(text)
    if arguments.docs:
        write_into(arguments.docs, text)


if __name__ == "__main__":
    main()
