"""What the figures of `quality.py` say: gaps to the sweep's best, and which promises they keep."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.cells import ARMS, STARTS, Cell, best_of_sweep

MEDIAN_LIMIT = {"adamw": 0.02, "sgd": 0.03}
"""`auto`, median over the seeds, from any start."""
WORST_LIMIT = 0.05
"""`auto` with AdamW, every single run."""
RIGHT_START_LIMIT = 0.015
"""`auto`, median over the seeds, from the right rate."""
SHARE_OF_PLAIN_LIMIT = 0.25
"""`auto`'s gap from a wrong rate, relative to plain one-cycle's from the same rate."""
COUNTS_FROM = 0.10
"""A wrong start from which plain one-cycle is less behind than this does not count."""
ON_PROCESSES_LIMIT = 0.03
"""`auto` on real processes, median over the seeds, from any start."""

_OFF_THE_SCALE = 10.0
"""Gaps from here on are not told apart: the run is lost."""

Records = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One arm from one start: test losses relative to the sweep's best run of the same seed, minus 1."""

    arm: str
    start: str
    gaps: tuple[float, ...]
    samples: int
    probed: int
    search_steps: float
    found: float | None
    """Median over the seeds of the found rate, relative to the sweep's best."""
    events: str
    """What else happened: rollbacks, failures, unconfirmed or suspect searches."""

    @property
    def median(self) -> float:
        """Over the seeds."""
        return statistics.median(self.gaps)

    @property
    def worst(self) -> float:
        """Over the seeds."""
        return max(self.gaps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """One bound on one line."""

    text: str
    value: float
    limit: float

    @property
    def is_kept(self) -> bool:
        """The value does not pass the limit."""
        return self.value <= self.limit


def lines_of(cell: Cell, parts: Mapping[str, Records]) -> list[Line]:
    """Every arm and start that has been computed."""
    best_rate = best_of_sweep(parts["sweep"])
    reference = {r["seed"]: r["test_loss"] for r in parts["sweep"] if r["rate"] == best_rate}
    lines = []
    for arm in ARMS:
        for start, factor in STARTS.items():
            records = [r for r in parts.get(arm, ()) if r["start"] == factor]
            if records:
                lines.append(_line(arm, start, records, reference, best_rate))
    return lines


def is_interior(cell: Cell, parts: Mapping[str, Records]) -> bool:
    """The sweep's best rate has worse ones on both sides."""
    place = cell.rates.index(best_of_sweep(parts["sweep"]))
    return 0 < place < len(cell.rates) - 1


def promises_of(cell: Cell, lines: Sequence[Line]) -> list[Promise]:
    """The bounds that apply to a cell's lines."""
    plain = {line.start: line.median for line in lines if line.arm == "plain"}
    if cell.on_processes:
        return [
            Promise(text=f"{line.start}: median", value=line.median, limit=ON_PROCESSES_LIMIT)
            for line in lines
            if line.arm == "auto"
        ]
    promises = []
    for line in lines:
        if line.arm != "auto" or not cell.is_bounded:
            continue
        is_right = line.start == "right"
        if not is_right and plain.get(line.start, math.inf) < COUNTS_FROM:
            continue
        limit = MEDIAN_LIMIT[cell.optimizer]
        promises.append(Promise(text=f"{line.start}: median", value=line.median, limit=limit))
        if cell.optimizer == "adamw":
            promises.append(Promise(text=f"{line.start}: worst", value=line.worst, limit=WORST_LIMIT))
        if is_right:
            promises.append(Promise(text="right: median", value=line.median, limit=RIGHT_START_LIMIT))
        elif line.start in plain:
            limit = SHARE_OF_PLAIN_LIMIT * plain[line.start]
            promises.append(Promise(text=f"{line.start}: quarter of plain", value=line.median, limit=limit))
    return promises


def table(cell: Cell, parts: Mapping[str, Records]) -> str:
    """A cell as Markdown: a row for each arm, with median and worst gap from each start."""
    best_rate = best_of_sweep(parts["sweep"])
    best_losses = [r["test_loss"] for r in parts["sweep"] if r["rate"] == best_rate]
    edge = "" if is_interior(cell, parts) else ", NOT INTERIOR"
    bound = "" if cell.is_bounded else "; reported without a bound"
    head = (
        f"**{cell.key}**: best rate of {len(cell.rates)} is {best_rate:.3g}{edge}, test loss "
        f"{statistics.median(best_losses):.4f} (median of {len(best_losses)} seeds){bound}"
    )
    columns = ["arm", *STARTS, "samples trained", "probed", "search steps", "found / best", "events"]
    rows = [_row(columns), _row(["---"] * len(columns))]
    for arm in ARMS:
        lines = {line.start: line for line in lines_of(cell, parts) if line.arm == arm}
        if lines:
            rows.append(_row([arm, *_arm_cells([lines[start] for start in STARTS])]))
    return "\n".join([head, "", *rows, ""])


def summarize_cells(
    cells: Sequence[Cell], entries: Mapping[str, Mapping[str, Records]]
) -> dict[str, list[dict[str, Any]]]:
    """The table and the promises as JSON takes them; a gap that is not finite is ``None``."""
    summary: dict[str, list[dict[str, Any]]] = {"lines": [], "promises": []}
    for cell in cells:
        parts = entries.get(cell.key, {})
        if "sweep" not in parts:
            continue
        lines = lines_of(cell, parts)
        for line in lines:
            figures = {"median_gap": _finite(line.median), "worst_gap": _finite(line.worst)}
            kept = {name: value for name, value in asdict(line).items() if name != "gaps"}
            summary["lines"].append({"cell": cell.key} | kept | figures)
        summary["promises"] += [
            {
                "cell": cell.key,
                "text": p.text,
                "value": _finite(p.value),
                "limit": _finite(p.limit),
                "kept": p.is_kept,
            }
            for p in promises_of(cell, lines)
        ]
    return summary


def report(cells: Sequence[Cell], entries: Mapping[str, Mapping[str, Records]]) -> str:
    """Every computed cell as Markdown, then the promises that are broken."""
    texts, kept, broken = [], 0, []
    for cell in cells:
        parts = entries.get(cell.key, {})
        if "sweep" not in parts:
            continue
        texts.append(table(cell, parts))
        for promise in promises_of(cell, lines_of(cell, parts)):
            if promise.is_kept:
                kept += 1
            else:
                figures = f"{_percent(promise.value)}, limit {_percent(promise.limit)}"
                broken.append(f"- {cell.key}, {promise.text}: {figures}")
    verdict = f"{kept} bounds kept, {len(broken)} not reached{':' if broken else '.'}"
    return "\n".join([*texts, verdict, *broken])


def _line(
    arm: str, start: str, records: Records, reference: Mapping[int, float | None], best_rate: float
) -> Line:
    found = [r["found"] / best_rate for r in records if r["found"] is not None]
    return Line(
        arm=arm,
        start=start,
        gaps=tuple(_gap(r["test_loss"], reference[r["seed"]]) for r in records),
        samples=records[0]["samples"],
        probed=round(statistics.median(r["probed"] for r in records)),
        search_steps=statistics.median(r["search_steps"] for r in records),
        found=statistics.median(found) if found else None,
        events=_events(records),
    )


def _gap(loss: float | None, reference: float | None) -> float:
    if loss is None or reference is None:
        return math.inf
    return loss / reference - 1


def _events(records: Records) -> str:
    counts = {
        "rollbacks": sum(r["rollbacks"] for r in records),
        "unconfirmed": sum(r["is_confirmed"] is False for r in records),
        "suspect": sum(r["is_suspect"] is True for r in records),
        "failed": sum(r["failure"] is not None for r in records),
        "not finite": sum(r["test_loss"] is None and r["failure"] is None for r in records),
    }
    return ", ".join(f"{n} {what}" for what, n in counts.items() if n)


def _arm_cells(lines: Sequence[Line]) -> list[str]:
    gaps = [f"{_percent(line.median)} ({_percent(line.worst)})" for line in lines]
    found = [f"{line.found:.2f}" for line in lines if line.found is not None]
    return [
        *gaps,
        f"{lines[0].samples:,}",
        _range([line.probed for line in lines]),
        _range([line.search_steps for line in lines]),
        ", ".join(found),
        "; ".join(f"{line.start}: {line.events}" for line in lines if line.events),
    ]


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    if high == 0:
        return ""
    return f"{low:,.0f}" if low == high else f"{low:,.0f}-{high:,.0f}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _percent(value: float) -> str:
    if not math.isfinite(value):
        return "diverged"
    return f"{100 * value:+.2f} %" if value < _OFF_THE_SCALE else f"over {_OFF_THE_SCALE:.0f}x"
