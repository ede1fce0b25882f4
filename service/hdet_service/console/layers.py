"""What several charts draw alike: bands of many replicas, lines with gaps, shaded searches, robust scales."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

from hdet_service.console.record import RoundRecord, RunRecord
from hdet_service.console.svg import Area, Axis, Layer, Line, Point, Rule, Shade

Layers = list[Layer]

NUM_TINTS = 8
_ROBUST_FACTOR = 3.0
_WORDS_SHARE = 0.12
"""Of a chart's width that a mark's words need."""
_PHASES = {"scout": "scout rounds", "pairs": "pair rounds"}


def tint(replica: int, num_replicas: int) -> str:
    """A replica's class: the lowest number is the darkest."""
    if num_replicas <= 1:
        return "tint0"
    return f"tint{round(replica / (num_replicas - 1) * (NUM_TINTS - 1))}"


def replica_label(replica: int, num_replicas: int) -> str:
    """Its name in the legend; of many, only the first and the last have one."""
    is_named = num_replicas <= NUM_TINTS or replica in (0, num_replicas - 1)
    return f"replica {replica}" if is_named else ""


def is_search(record: RoundRecord) -> bool:
    """A round whose weights are put back."""
    return record.phase in _PHASES


def by_search(rounds: Sequence[RoundRecord]) -> list[list[RoundRecord]]:
    """Search rounds and others apart: a search's all start from the same weights."""
    return [list(group) for _, group in groupby(rounds, key=is_search)]


def at(values: Sequence[float], quantile: int) -> float:
    """One of five quantiles; of a round of few replicas among rounds of many they are taken now."""
    if len(values) == 5:
        return values[quantile]
    ordered = sorted(values)
    return ordered[round(quantile / 4 * (len(ordered) - 1))]


def bands(
    pieces: Sequence[Callable[[int], Sequence[tuple[float, float | None]]]], median: str = "median"
) -> Layers:
    """All replicas, the middle half of them, and the median.

    Args:
        pieces: Each gives its points for one of the five quantiles; pieces are not joined.
        median: Name of that line.
    """
    columns = [[piece(quantile) for quantile in range(5)] for piece in pieces]

    def band(low: int, high: int) -> list[tuple[float, float | None, float | None]]:
        out: list[tuple[float, float | None, float | None]] = []
        for column in columns:
            out += [(x, a, b) for (x, a), (_, b) in zip(column[low], column[high], strict=True)]
            out.append((0.0, None, None))
        return out

    return [
        Area(points=band(0, 4), css="band-all", label="all replicas"),
        Area(points=band(1, 3), css="band-half", label="middle half"),
        Line(points=with_gaps(column[2] for column in columns), css="thin median", label=median),
    ]


def with_gaps(pieces: Iterable[Sequence[tuple[float, float | None]]]) -> list[Point]:
    """One line through pieces that are not joined."""
    out: list[Point] = []
    for piece in pieces:
        out += piece
        out.append((0.0, None))
    return out


def shades(rounds: Sequence[RoundRecord]) -> list[Shade]:
    """The search's phases."""
    found = []
    for phase, group in groupby(rounds, key=lambda r: r.phase):
        members = list(group)
        if phase in _PHASES:
            first, end = members[0].step, members[-1].end_step
            found.append(Shade(first=first, end=end, css=phase, label=_PHASES[phase]))
    return found


def restarts(record: RunRecord, x: Axis) -> list[Rule]:
    """Where the run began anew, with its new size and how long it had stood still.

    Of marks that are close together on the axis only the first has its words; all have their line.
    """
    rules: list[Rule] = []
    said_at = -1.0
    for mark in record.marks:
        place = x.place(mark.step)
        is_said = place - said_at >= _WORDS_SHARE
        said_at = place if is_said else said_at
        rules.append(Rule(x=mark.step, css="restart", text=mark.text if is_said else "", is_left=False))
    return rules


def robust(values: Sequence[float]) -> float:
    """Above this a value is off the chart: one exploded candidate must not flatten all others."""
    if len(values) < 4:
        return max(values, default=math.inf)
    ordered = sorted(values)
    middle = statistics.median(ordered)
    spread = ordered[round(0.9 * (len(ordered) - 1))] - ordered[round(0.1 * (len(ordered) - 1))]
    return middle + _ROBUST_FACTOR * max(spread, abs(middle) * 0.02)


def stride_note(record: RunRecord) -> str:
    """Says that rounds are left out; strides are powers of two."""
    if record.stride == 1:
        return ""
    suffix = "nd" if record.stride % 10 == 2 and record.stride % 100 != 12 else "th"
    return f" Every {record.stride}{suffix} round is shown."
