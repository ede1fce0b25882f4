"""Charts of what rounds told: losses, their spread, and how far the weights went apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from hdet_ray.view.numbers import loss_text
from hdet_service.console.layers import (
    Layers,
    at,
    bands,
    by_search,
    is_search,
    replica_label,
    restarts,
    robust,
    shades,
    stride_note,
    tint,
    with_gaps,
)
from hdet_service.console.record import MANY_REPLICAS, RoundRecord, RunRecord
from hdet_service.console.svg import Axis, Chart, Dots, Hover, Line, Point, axis_around

_MAX_DOTS = 60
"""Of a longer line the points are not marked."""


def losses(record: RunRecord) -> Chart:
    """Each replica's mean training loss, round by round."""
    rounds = record.rounds
    count = max(r.num_replicas for r in rounds)
    known = [loss for r in rounds for loss in r.losses if loss is not None]
    y = axis_around([v for v in known if v <= robust(known)])
    layers = _of_many(rounds) if count > MANY_REPLICAS else _of_each(rounds, count)
    hurt = [r for r in rounds if r.left_out and not is_search(r)]
    if hurt:
        top = y.high - 0.04 * (y.high - y.low)
        points = [(float(r.end_step), top) for r in hurt]
        layers.append(Dots(points=points, css="dead", label="replica left out", is_cross=True))
    many = f" {count} replicas, as quantiles." if count > MANY_REPLICAS else ""
    return Chart(
        name="losses",
        title="Training loss by round",
        note=f"Mean over each round, at the step where it ended.{many}{stride_note(record)}",
        x=_steps(record),
        y=y,
        layers=layers,
        rules=restarts(record, _steps(record)),
        shades=shades(rounds),
        hover=_losses_hover(rounds),
        summary=f"The newest mean loss is {loss_text(rounds[-1].loss)}.",
    )


def spread(record: RunRecord) -> Chart | None:
    """Highest minus lowest loss."""
    return _one_line(
        record,
        name="spread",
        title="How far the replicas' losses lie apart",
        note="Highest minus lowest loss of healthy replicas; in training mostly the noise of their data.",
        value_of=lambda r: r.loss_spread,
    )


def divergence(record: RunRecord) -> Chart | None:
    """Distance of the parameters before each average."""
    return _one_line(
        record,
        name="divergence",
        title="How far the replicas' weights went apart",
        note="Largest distance from the mean, over the mean's norm, just before each average.",
        value_of=lambda r: r.divergence,
    )


def _steps(record: RunRecord) -> Axis:
    return Axis(low=0, high=max(record.rounds[-1].end_step, 1) * 1.015)


def _of_many(rounds: Sequence[RoundRecord]) -> Layers:
    return bands([partial(_quantile, group) for group in by_search(rounds)])


def _quantile(rounds: Sequence[RoundRecord], quantile: int) -> list[Point]:
    told = [(r, [loss for loss in r.losses if loss is not None]) for r in rounds]
    return [(r.end_step, at(finite, quantile) if finite else None) for r, finite in told]


def _of_each(rounds: Sequence[RoundRecord], count: int) -> Layers:
    layers: Layers = []
    tried = [r for r in rounds if is_search(r)]
    trained = [group for group in by_search(rounds) if not is_search(group[0])]
    for i in range(count):
        css, label = tint(i, count), replica_label(i, count)
        # No line through a search: its rounds start from the same weights.
        dots = [(r.end_step, r.losses[i]) for r in tried if i < len(r.losses)]
        layers.append(Dots(points=[(x, y) for x, y in dots if y is not None], css=f"small {css}"))
        pieces = [[(r.end_step, r.losses[i]) for r in group if i < len(r.losses)] for group in trained]
        layers.append(Line(points=with_gaps(pieces), css=f"thin {css}", label=label))
    return layers


def _losses_hover(rounds: Sequence[RoundRecord]) -> Hover:
    finite = [[loss for loss in r.losses if loss is not None] for r in rounds]
    return Hover(
        xs=[r.end_step for r in rounds],
        titles=[f"round {r.round} · {r.phase.replace('_', '-')} · to step {r.end_step:,}" for r in rounds],
        rows=[
            ("mean", "base", [loss_text(r.loss) for r in rounds]),
            ("lowest", "tint1", [loss_text(min(known, default=None)) for known in finite]),
            ("highest", "tint6", [loss_text(max(known, default=None)) for known in finite]),
            ("dead or left out", "dead", [str(max(len(r.left_out), r.num_dead)) for r in rounds]),
        ],
    )


def _one_line(
    record: RunRecord,
    *,
    name: str,
    title: str,
    note: str,
    value_of: Callable[[RoundRecord], float | None],
) -> Chart | None:
    rounds = [r for r in record.rounds if value_of(r) is not None]
    points = [(float(r.end_step), value) for r in rounds if (value := value_of(r)) is not None]
    if not points:
        return None
    values = [value for _, value in points]
    pieces = [[(r.end_step, value_of(r)) for r in group] for group in by_search(rounds)]
    layers: Layers = [Line(points=with_gaps(pieces), css="base")]
    if len(points) <= _MAX_DOTS:
        layers.append(Dots(points=points, css="small base"))
    return Chart(
        name=name,
        title=title,
        note=note,
        x=_steps(record),
        y=axis_around([v for v in values if v <= robust(values)], from_zero=True),
        layers=layers,
        shades=shades(record.rounds),
        hover=Hover(
            xs=[x for x, _ in points],
            titles=[f"round {r.round} · to step {r.end_step:,}" for r in rounds],
            rows=[(name, "base", [loss_text(value) for value in values])],
        ),
        summary=f"The newest value is {loss_text(values[-1])}.",
    )
