"""What every benchmark needs: both sides in turn in one run, spread beside the median, and where it ran.

Timings from different runs of a shared machine can't be compared; timings that alternate in one run can.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def interleaved(
    functions: Mapping[str, Callable[[], object]],
    repeats: int,
    *,
    before_each: Callable[[], object] | None = None,
) -> dict[str, list[float]]:
    """Time functions in turn, each first equally often.

    Args:
        functions: What to time, by name. Each is called once untimed before.
        repeats: Timed calls of each.
        before_each: Called untimed before every call, such as a barrier.

    Returns:
        Seconds of each call by name; the i-th entries were taken side by side.
    """
    names = list(functions)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(-1, repeats):
        shift = repeat % len(names)
        for name in names[shift:] + names[:shift]:
            if before_each is not None:
                before_each()
            start = time.perf_counter()
            functions[name]()
            elapsed = time.perf_counter() - start
            if repeat >= 0:
                seconds[name].append(elapsed)
    return seconds


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Ratios of timings that were taken side by side."""
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median and spread of a sample: ``median``, ``p10``, ``p90``, ``min``, ``max`` and ``n``."""
    ordered = sorted(values)
    return {
        "median": statistics.median(ordered),
        "p10": quantile(ordered, 0.1),
        "p90": quantile(ordered, 0.9),
        "min": ordered[0],
        "max": ordered[-1],
        "n": len(ordered),
    }


def describe_machine() -> dict[str, Any]:
    """The hardware, the versions and the load: what a figure is worth depends on them."""
    machine: dict[str, Any] = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_average_1min": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
    }
    if torch := sys.modules.get("torch"):
        machine["torch"] = torch.__version__
        machine["accelerators"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if ray := sys.modules.get("ray"):
        machine["ray"] = ray.__version__
    return machine


def write_result(name: str, payload: Mapping[str, Any], path: Path | None = None) -> Path:
    """Write a result with the machine it comes from as JSON.

    Args:
        name: The benchmark's name.
        payload: Its figures.
        path: The file; None is ``benchmarks/results/NAME.json``.

    Returns:
        The file.
    """
    target = path or RESULTS / f"{name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    document = {"benchmark": name, "machine": describe_machine(), **payload}
    target.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return target


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows in columns, numbers with four significant digits."""
    cells = [list(header), *([_text(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    print(f"\n{title}")
    for row in cells:
        first, *others = row
        columns = (text.rjust(width) for text, width in zip(others, widths[1:], strict=True))
        print("  ".join([first.ljust(widths[0]), *columns]))


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which this share of a sample lies, between neighbours in proportion."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
