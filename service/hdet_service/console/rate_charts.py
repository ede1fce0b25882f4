"""Charts of rates: the whole run, what the search's replicas tried, and the fan around the base."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from hdet_ray.core.plan import centre_rate
from hdet_ray.view.numbers import rate_text
from hdet_service.console.layers import (
    Layers,
    at,
    bands,
    is_search,
    replica_label,
    restarts,
    shades,
    stride_note,
    tint,
    with_gaps,
)
from hdet_service.console.record import RoundRecord, RunRecord
from hdet_service.console.svg import Area, Axis, Boxes, Chart, Hover, Line, Point, Rule, axis_around

_RATE_RANGE = 3e4
"""Of rates no more than this below the highest is drawn: one-cycle's last steps fall by five decades."""
_CURVE_POINTS = 160
_NEWEST_ROUNDS = 24
_NUM_LEVELS = 9
_QUANTILE_NAMES = ("lowest", "lower quarter", "median", "upper quarter", "highest")


def whole_run(record: RunRecord) -> Chart:
    """The base rate over the run, with the replicas around it and plain one-cycle beside it."""
    total = record.state.config.total_steps
    base = [point for r in record.rounds for point in r.base]
    plain, ahead = _plain(record), _ahead(record)
    searched = [r for r in record.rounds if is_search(r) and r.differs]
    layers: Layers = []
    if plain:
        layers.append(Line(points=plain, css="plain", label="plain one-cycle, as given"))
    layers += _candidates(searched, lambda _: "")
    fan = [r for r in record.rounds if not is_search(r) and r.differs]
    if fan:
        points = [(step, rate * min(r.spread), rate * max(r.spread)) for r in fan for step, rate in r.base]
        layers.append(Area(points=points, css="band-all", label="all replicas"))
    if ahead:
        layers.append(Line(points=ahead, css="ahead", label="ahead, if nothing changes"))
    layers.append(Line(points=base, css="base", label="base rate"))
    now, x = record.rounds[-1].end_step, Axis(low=0, high=total)
    return Chart(
        name="rates",
        title="Learning rate",
        note="What the run does at each step, and what its one-cycle alone would have done."
        + stride_note(record),
        x=x,
        y=_axis(record, [y for _, y in (*base, *ahead, *plain) if y is not None]),
        layers=layers,
        rules=[
            *restarts(record, x),
            *([Rule(x=now, css="now", text="now")] if record.plan.num_steps else []),
        ],
        shades=shades(record.rounds),
        hover=_whole_hover(record),
        is_wide=True,
        summary=f"The base rate is {rate_text(base[-1][1] if base else None)} at step {now} of {total}.",
    )


def candidates(record: RunRecord) -> Chart | None:
    """What the replicas of search rounds tried, step by step."""
    tried = [r for r in record.rounds if is_search(r) and r.differs and r.base]
    if not tried:
        return None
    rates = [rate * m for r in tried for _, rate in r.base for m in (min(r.spread), max(r.spread))]
    return Chart(
        name="candidates",
        title="Rates that the replicas tried",
        note="Each candidate warms up, holds and decays; then its weights are put back.",
        x=Axis(low=tried[0].step, high=tried[-1].end_step),
        y=axis_around(rates, is_log=True),
        layers=_candidates(tried, partial(replica_label, num_replicas=max(r.num_replicas for r in tried))),
        shades=shades(tried),
        hover=_candidates_hover(tried),
        summary=f"{len(tried)} rounds, from {rate_text(min(rates))} to {rate_text(max(rates))}.",
    )


def around_the_base(record: RunRecord) -> Chart | None:
    """Who trained above and who below the base in the newest rounds of a fan-out; None of many replicas."""
    fan = [r for r in record.rounds if not is_search(r) and r.differs][-_NEWEST_ROUNDS:]
    if not fan or any(r.is_many for r in fan):
        return None
    ends = [m for r in fan for m in r.spread]
    count = max(r.num_replicas for r in fan)
    note = "Each replica's rate over the base rate; who has which is drawn anew every round."
    return Chart(
        name="fan",
        title="Replicas around the base",
        note=note + (f" The newest {len(fan)} rounds." if len(fan) == _NEWEST_ROUNDS else ""),
        x=Axis(low=fan[0].step, high=fan[-1].end_step),
        y=Axis(low=-0.5, high=count - 0.5),
        layers=_cells(fan, max(abs(m - 1) for m in ends) or 1.0),
        hover=_fan_hover(fan),
        summary=f"Rates lie between {min(ends):.3f} and {max(ends):.3f} of the base.",
    )


def _cells(fan: Sequence[RoundRecord], reach: float) -> Layers:
    """A box for each round and replica, coloured by how far from the base it was."""
    boxes: dict[int, list[tuple[float, float, float, float]]] = {level: [] for level in range(_NUM_LEVELS)}
    for r in fan:
        for replica, multiplier in enumerate(r.spread):
            level = round((multiplier - 1 + reach) / (2 * reach) * (_NUM_LEVELS - 1))
            boxes[level].append((r.step, r.end_step, replica - 0.46, replica + 0.46))
    labels = {0: f"× {1 - reach:.2f}", _NUM_LEVELS // 2: "base", _NUM_LEVELS - 1: f"× {1 + reach:.2f}"}
    return [
        Boxes(boxes=boxes[level], css=f"level{level}", label=labels.get(level, ""))
        for level in range(_NUM_LEVELS)
    ]


def _axis(record: RunRecord, rates: Sequence[float]) -> Axis:
    spread = [rate * m for r in record.rounds for _, rate in r.base for m in (min(r.spread), max(r.spread))]
    known = [r for r in (*rates, *spread) if r > 0]
    highest = max(known, default=1.0)
    if record.state.search is None:  # no decades to show, so the fan is seen better as it is
        return axis_around([0.0, *known], from_zero=True)
    return axis_around([r for r in known if r >= highest / _RATE_RANGE], is_log=True)


def _plain(record: RunRecord) -> list[Point]:
    cycle = record.start.config.cycle
    if cycle is None:
        return []
    return [(step, cycle.lr_at(0, step)) for step in _even(0, cycle.total_steps)]


def _ahead(record: RunRecord) -> list[Point]:
    """The rate to come: one-cycle says it; under the paper's rule nobody knows."""
    plan = record.plan
    if plan.shape != "one_cycle" or not plan.num_steps:
        return []
    return [(step, centre_rate(plan, 0, step)) for step in _even(plan.step, plan.total_steps)]


def _even(first: int, end: int) -> list[int]:
    stride = max((end - first) // _CURVE_POINTS, 1)
    steps = list(range(first, end, stride))
    return steps if not steps or steps[-1] == end - 1 else [*steps, end - 1]


def _candidates(tried: Sequence[RoundRecord], label_of: Callable[[int], str]) -> Layers:
    if not tried:
        return []
    if any(r.is_many for r in tried):
        return bands([partial(_tried, r) for r in tried])
    count = max(r.num_replicas for r in tried)
    return [
        Line(
            points=with_gaps(_tried_by(r, i) for r in tried if i < len(r.spread)),
            css=f"thin {tint(i, count)}",
            label=label_of(i),
        )
        for i in range(count)
    ]


def _tried(record: RoundRecord, quantile: int) -> list[Point]:
    return [(step, rate * at(record.spread, quantile)) for step, rate in record.base]


def _tried_by(record: RoundRecord, replica: int) -> list[Point]:
    return [(step, rate * record.spread[replica]) for step, rate in record.base]


def _title(record: RoundRecord, step: float) -> str:
    return f"step {step:,} · round {record.round} · {record.phase.replace('_', '-')}"


def _whole_hover(record: RunRecord) -> Hover:
    points = [(step, rate, r) for r in record.rounds for step, rate in r.base]
    rows = [("base rate", "base", [rate_text(rate) for _, rate, _ in points])]
    if any(r.differs for r in record.rounds):
        rows.append(("replicas", "tint3", [_range_text(r, rate) for _, rate, r in points]))
    cycle = record.start.config.cycle
    if cycle is not None:
        last = cycle.total_steps - 1
        plain = [rate_text(cycle.lr_at(0, min(int(step), last))) for step, _, _ in points]
        rows.append(("plain one-cycle", "plain", plain))
    return Hover(
        xs=[step for step, _, _ in points], titles=[_title(r, step) for step, _, r in points], rows=rows
    )


def _range_text(record: RoundRecord, rate: float) -> str:
    if not record.differs:
        return "all the same"
    return f"{rate_text(rate * min(record.spread))} … {rate_text(rate * max(record.spread))}"


def _candidates_hover(tried: Sequence[RoundRecord]) -> Hover:
    points = [(step, rate, r) for r in tried for step, rate in r.base]
    return Hover(
        xs=[step for step, _, _ in points],
        titles=[_title(r, step) for step, _, r in points],
        rows=_rows(tried, [(r, partial(_rate_text, rate)) for _, rate, r in points]),
    )


def _rate_text(rate: float, multiplier: float) -> str:
    return rate_text(rate * multiplier)


def _fan_hover(fan: Sequence[RoundRecord]) -> Hover:
    return Hover(
        xs=[(r.step + r.end_step) / 2 for r in fan],
        titles=[f"round {r.round} · steps {r.step:,} to {r.end_step:,}" for r in fan],
        rows=_rows(fan, [(r, lambda m: f"× {m:.3f}") for r in fan]),
    )


def _rows(
    rounds: Sequence[RoundRecord], places: Sequence[tuple[RoundRecord, Callable[[float], str]]]
) -> list[tuple[str, str, list[str]]]:
    """A row for each replica, or for each quantile of many; ``places`` says a multiplier in words."""
    if any(r.is_many for r in rounds):
        return [
            (name, "median", [say(at(r.spread, i)) for r, say in places])
            for i, name in enumerate(_QUANTILE_NAMES)
        ]
    count = max(r.num_replicas for r in rounds)
    return [
        (
            f"replica {i}",
            tint(i, count),
            [say(r.spread[i]) if i < len(r.spread) else "–" for r, say in places],
        )
        for i in range(count)
    ]
