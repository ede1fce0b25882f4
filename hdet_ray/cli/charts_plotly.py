"""The report's charts for a browser: Plotly figures as plain data, one a panel.

Colours of text and grid are left to the page, which knows whether it is light or dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hdet_ray.cli import palette
from hdet_ray.view.numbers import loss_text, rate_text
from hdet_ray.view.series import Band, Curve, ReportSeries, SearchSeries, Trial, TrialPhase

Json = dict[str, Any]

_MANY_REPLICAS = 8
_SCHEDULE_NOTE = (
    "What the run did, and what plain one-cycle would have done. "
    "Shaded: scout rounds (blue) and pair rounds (orange)."
)
_PHASES: dict[TrialPhase, tuple[str, str, str]] = {
    "scout": ("scout", palette.SCOUT, "circle"),
    "pairs": ("pair", palette.PAIRS, "diamond"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One chart of the page."""

    name: str
    """Its element's id."""
    title: str
    note: str
    """What it shows, in a sentence."""
    figure: Json
    """``data`` and ``layout``."""
    is_wide: bool = False


def panels_of(series: ReportSeries) -> tuple[Panel, ...]:
    """The panels that this run has something to say in."""
    panels = [_schedule(series)]
    if series.fan:
        panels.append(_fan(series))
    if series.search is not None:
        panels.append(_search(series.search))
    panels.append(_losses(series))
    if series.spread is not None:
        panels.append(_spread(series.spread, series.bands))
    panels += [_explored(place, curve, series.bands) for place, curve in enumerate(series.explored)]
    return tuple(panels)


def _schedule(series: ReportSeries) -> Panel:
    traces = []
    if series.one_cycle is not None:
        traces.append(
            _line(series.one_cycle, palette.PLAIN, name="plain one-cycle, as given", dash="dash", width=2)
        )
    for place, curve in enumerate(series.reference_rates, start=1):
        traces.append(_line(curve, palette.reference_color(place), dash="dash", width=2))
    for i, curve in enumerate(series.fan):
        color = palette.replica_color(i, len(series.fan))
        traces.append({**_line(curve, color, width=1), "showlegend": False, "opacity": 0.8})
    traces.append(_line(series.base, palette.BASE, name="this run", width=3))
    return Panel(
        name="schedule",
        title="Learning rate",
        note=_SCHEDULE_NOTE,
        figure=_figure(traces, series.bands, y="learning rate", y_axis=_log_axis()),
        is_wide=True,
    )


def _fan(series: ReportSeries) -> Panel:
    traces = _replica_lines(series.fan, mode="lines", width=2)
    steps = [x for curve in series.fan for x in curve.x]
    figure = _figure(traces, series.bands, y="learning rate", y_axis=_log_axis())
    figure["layout"]["xaxis"]["range"] = [min(steps), max(steps)]
    return Panel(
        name="fan",
        title="Rates of the replicas",
        note="Step by step, in the rounds where they differ. Candidates warm up, hold and decay.",
        figure=figure,
    )


def _search(search: SearchSeries) -> Panel:
    traces: list[Json] = []
    for phase, curve in search.parabolas:
        line = _line(curve, _PHASES[phase][1], width=2)
        traces.append(
            {**line, "opacity": 0.6, "showlegend": False, "hoverinfo": "skip", "hovertemplate": None}
        )
    live = [t for t in search.trials if not t.is_dead and t.loss is not None]
    for phase, (name, color, symbol) in _PHASES.items():
        traces.append(_points([t for t in live if t.phase == phase], name, color, symbol))
    dead = [t for t in search.trials if t.is_dead]
    losses = [t.loss for t in live if t.loss is not None]
    if dead and losses:
        # A dead one's loss has no place on the scale of the live ones, where it has one at all.
        top = max(losses) + 0.08 * (max(losses) - min(losses))
        traces.append({**_points(dead, "dead", palette.DEAD, "x"), "y": [top] * len(dead)})
    figure = _figure(traces, (), x="learning rate", y="probe loss after the trial")
    layout = figure["layout"]
    layout["xaxis"] = {**layout["xaxis"], **_log_axis()}
    if losses:
        height = max(losses) - min(losses)
        layout["yaxis"]["range"] = [min(losses) - 0.12 * height, max(losses) + 0.45 * height]
    rates = [t.rate for t in search.trials]
    middle = math.sqrt(min(rates) * max(rates))
    marks = [
        _mark(
            search.started_from,
            f"given {rate_text(search.started_from)}",
            palette.PLAIN,
            "dash",
            0.92,
            middle,
        )
    ]
    if search.result is not None:
        suffix = ", suspect" if search.is_suspect else ""
        text = f"found {rate_text(search.result)}{suffix}"
        marks.append(_mark(search.result, text, palette.FOUND, "solid", 1.0, middle))
    layout["shapes"] = [shape for shape, _ in marks]
    layout["annotations"] = [annotation for _, annotation in marks]
    untrained = search.untrained_loss
    comparison = "" if untrained is None else f" The untrained model has {loss_text(untrained)}."
    return Panel(
        name="search",
        title="What the search tried",
        note=f"Probe loss of each candidate after its round; then its weights are put back.{comparison}",
        figure=figure,
    )


def _losses(series: ReportSeries) -> Panel:
    traces = [
        _line(curve, palette.reference_color(place), dash="dash", width=2)
        for place, curve in enumerate(series.reference_losses)
    ]
    replicas = _replica_lines(series.losses, mode="lines+markers", width=1.5)
    colors = ""
    if series.fan:
        replicas = [{**trace, "showlegend": False} for trace in replicas]
        colors = " The replicas' colours are those of their rates."
    return Panel(
        name="losses",
        title="Training loss by round",
        note=f"Mean over the round, at the step where it ended.{colors}",
        figure=_figure([*traces, *replicas], series.bands, y="mean training loss"),
    )


def _spread(spread: Curve, bands: Sequence[Band]) -> Panel:
    trace = {**_line(spread, palette.BASE, width=2), "mode": "lines+markers"}
    return Panel(
        name="spread",
        title="How far the replicas' losses lie apart",
        note="Highest minus lowest loss of live replicas; in training rounds mostly the noise of their data.",
        figure=_figure([trace], bands, y="highest − lowest loss", y_axis={"rangemode": "tozero"}),
    )


def _explored(place: int, curve: Curve, bands: Sequence[Band]) -> Panel:
    trace = {**_line(curve, palette.BASE, width=2), "mode": "lines+markers"}
    return Panel(
        name=f"explored-{place}",
        title=f"Base value of {curve.label}",
        note="At the start of each round.",
        figure=_figure([trace], bands, y=curve.label),
    )


def _replica_lines(curves: Sequence[Curve], *, mode: str, width: float) -> list[Json]:
    """One line a replica; of many, only the first and the last stand in the legend."""
    named = {0, len(curves) - 1} if len(curves) > _MANY_REPLICAS else set(range(len(curves)))
    return [
        {
            **_line(curve, palette.replica_color(i, len(curves)), width=width),
            "mode": mode,
            "marker": {"size": 6},
            "showlegend": i in named,
        }
        for i, curve in enumerate(curves)
    ]


def _line(curve: Curve, color: str, *, width: float, name: str | None = None, dash: str = "solid") -> Json:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name or curve.label,
        "x": list(curve.x),
        "y": list(curve.y),
        "line": {"color": color, "width": width, "dash": dash},
        "hovertemplate": "%{y:.4g} at step %{x}",
    }


def _points(trials: Sequence[Trial], name: str, color: str, symbol: str) -> Json:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [t.rate for t in trials],
        "y": [t.loss for t in trials],
        "text": [f"round {t.round}: rate {rate_text(t.rate)}, loss {loss_text(t.loss)}" for t in trials],
        "hovertemplate": "%{text}",
        "marker": {"color": color, "symbol": symbol, "size": 9},
    }


def _mark(rate: float, text: str, color: str, dash: str, height: float, middle: float) -> tuple[Json, Json]:
    """A vertical line at a rate, and its name at a height, on the side that has more room."""
    line = {"color": color, "width": 2, "dash": dash}
    shape = {
        "type": "line",
        "x0": rate,
        "x1": rate,
        "yref": "paper",
        "y0": 0,
        "y1": 1,
        "line": line,
        "layer": "below",
    }
    is_left = rate > middle
    annotation = {
        "x": math.log10(rate),  # on a log axis annotations count in decades, shapes don't
        "xanchor": "right" if is_left else "left",
        "xshift": -4 if is_left else 4,
        "yref": "paper",
        "y": height,
        "yanchor": "top",
        "text": f"<b>{text}</b>",
        "showarrow": False,
        "font": {"color": color},
    }
    return shape, annotation


def _figure(
    traces: Sequence[Json], bands: Sequence[Band], *, y: str, x: str = "step", y_axis: Json | None = None
) -> Json:
    layout: Json = {
        "margin": {"l": 64, "r": 18, "t": 34, "b": 46},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "hovermode": "closest",
        "xaxis": {"title": {"text": x}, "zeroline": False},
        "yaxis": {"title": {"text": y}, "zeroline": False, "automargin": True, **(y_axis or {})},
        "shapes": [_shade(band, color) for band in bands if (color := palette.BANDS[band.phase]) is not None],
    }
    if bands:
        layout["xaxis"]["range"] = [bands[0].first_step, bands[-1].end_step]
    return {"data": list(traces), "layout": layout}


def _shade(band: Band, color: str) -> Json:
    return {
        "type": "rect",
        "x0": band.first_step,
        "x1": band.end_step,
        "yref": "paper",
        "y0": 0,
        "y1": 1,
        "fillcolor": color,
        "opacity": palette.BAND_OPACITY,
        "line": {"width": 0},
        "layer": "below",
    }


def _log_axis() -> Json:
    return {"type": "log", "exponentformat": "power", "dtick": 1, "tickfont": {"size": 11}}
