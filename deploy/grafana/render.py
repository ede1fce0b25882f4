"""Draws a dashboard's queries to a picture, where no Grafana is at hand:

python -m deploy.grafana.render run --url http://127.0.0.1:9090 --run ID --last 600 -o run.png

It reads the committed JSON, so what it draws is what Grafana would ask. Not how Grafana would paint it:
units, legends and marks are kept, interaction is not.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deploy.grafana.build import SHIPPED
from deploy.grafana.source import Prometheus, Series, Window, expand, variables_for

COLUMNS = 24
_ROW_INCHES = 0.34
_WIDTH_INCHES = 18.0
_LEFT, _RIGHT = 0.036, 0.008
"""Left free at a panel's sides, of the picture's width."""
_MARKS_ACROSS = 100
"""Events are told apart by a hundredth of the picture."""
_MOST_NAMES = 9
"""Lines beyond these are drawn, but not named: the legend would hide them."""

Ask = Callable[[str, Window], tuple[Series, ...]]


def draw(dashboard: Mapping[str, Any], ask: Ask, window: Window) -> Figure:
    """The dashboard as a figure.

    Args:
        dashboard: Its JSON.
        ask: Series of an expression that has variables still, over a time.
        window: Time on every axis, shown from its start on.
    """
    panels: Sequence[Mapping[str, Any]] = dashboard["panels"]
    rows = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in panels) + 1
    figure = Figure(figsize=(_WIDTH_INCHES, rows * _ROW_INCHES), facecolor="white", dpi=90)
    figure.text(0.01, 1 - 0.6 / rows, dashboard["title"], fontsize=13, weight="bold")
    marks = replace(window, step_s=max(window.step_s, (window.end_s - window.start_s) / _MARKS_ACROSS))
    events = [
        (one, ask(_within(one, marks.step_s), marks))
        for one in dashboard.get("annotations", {}).get("list", [])
    ]
    for panel in panels:
        place = panel["gridPos"]
        left, top = place["x"] / COLUMNS, 1 - (place["y"] + 1) / rows
        if panel["type"] == "row":
            figure.text(left + 0.01, top - 0.7 / rows, panel["title"], fontsize=11, weight="bold")
            continue
        width, height = place["w"] / COLUMNS, place["h"] / rows
        below, above = 0.9 / rows, 1.1 / rows  # for the axis' numbers, and for the title
        axes = figure.add_axes(
            (left + _LEFT, top - height + below, width - _LEFT - _RIGHT, height - below - above)
        )
        axes.set_title(panel["title"], fontsize=8.5, loc="left", pad=4)
        lines = [(target, series) for target in panel["targets"] for series in ask(target["expr"], window)]
        _PAINTERS[panel["type"]](axes, panel, lines, window)
        if panel["type"] == "timeseries":
            _mark(axes, events, marks)
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of the command line."""
    parser = argparse.ArgumentParser(prog="python -m deploy.grafana.render")
    parser.add_argument("board", choices=["fleet", "run"])
    parser.add_argument("--url", required=True, help="Prometheus, as http://127.0.0.1:9090")
    parser.add_argument("--run", default="", help="the job's id; the Run dashboard needs one")
    parser.add_argument("--last", type=float, default=3600.0, help="seconds to look back")
    parser.add_argument("--scrape-interval", type=float, default=15.0, help="seconds between two scrapes")
    parser.add_argument("-o", "--output", type=Path, required=True)
    chosen = parser.parse_args(arguments)
    if chosen.board == "run" and not chosen.run:
        parser.error("--run ID says which run to draw")
    now_s = time.time()
    window = Window(
        start_s=now_s - chosen.last,
        end_s=now_s,
        step_s=max(chosen.last / 1000, chosen.scrape_interval / 2),
    )
    save(chosen.board, Prometheus(chosen.url), chosen.run, window, chosen.scrape_interval, chosen.output)


def save(
    board: str, source: Prometheus, run: str, window: Window, scrape_interval_s: float, output: Path
) -> None:
    """Draw a shipped dashboard to a file."""
    variables = variables_for(run, scrape_interval_s)
    dashboard = json.loads((SHIPPED[0] / f"{board}.json").read_text(encoding="utf-8"))
    figure = draw(dashboard, lambda expr, when: source.ranged(expand(expr, variables), when), window)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output)


def _paint_lines(
    axes: Axes, panel: Mapping[str, Any], lines: Sequence[tuple[Any, Series]], window: Window
) -> None:
    custom = panel["fieldConfig"]["defaults"].get("custom", {})
    thick = {o["matcher"]["options"] for o in panel["fieldConfig"].get("overrides", [])}
    colors = mpl.colormaps["turbo"].resampled(max(len(lines), 2))
    for position, (target, series) in enumerate(lines):
        axes.plot(
            [at - window.start_s for at in series.times_s],
            series.values,
            color="black" if target["refId"] in thick else colors(position),
            linewidth=2.0 if target["refId"] in thick else 0.9,
            zorder=3 if target["refId"] in thick else 2,
            marker="." if len(series.values) < 3 else None,
            label=series.named(target["legendFormat"]) if position < _MOST_NAMES else "_",
        )
    axes.set_xlim(0, window.end_s - window.start_s)
    if custom.get("scaleDistribution", {}).get("type") == "log" and _are_positive(lines):
        axes.set_yscale("log")
        axes.margins(y=0.15)
    elif panel["fieldConfig"]["defaults"].get("min") == 0:
        top = max((value for _, series in lines for value in series.values if value == value), default=0.0)
        axes.set_ylim(-0.03 * (top or 1.0), 1.25 * (top or 1.0))  # a line at 0 stays visible
    axes.grid(alpha=0.25)
    axes.tick_params(which="both", labelsize=6.5)
    axes.set_ylabel(panel["fieldConfig"]["defaults"]["unit"], fontsize=6.5)
    if lines:
        axes.legend(fontsize=6, loc="upper left", ncols=3, framealpha=0.6, borderpad=0.2)
    else:
        axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", color="tab:red")


def _paint_stat(
    axes: Axes, panel: Mapping[str, Any], lines: Sequence[tuple[Any, Series]], window: Window
) -> None:
    axes.set_axis_off()
    unit = panel["fieldConfig"]["defaults"]["unit"]
    text = "  ".join(_said(series.values[-1], unit) for _, series in lines) or "no data"
    axes.text(0.0, 0.45, text, fontsize=17, color="black" if lines else "tab:red", va="center")


def _paint_states(
    axes: Axes, panel: Mapping[str, Any], lines: Sequence[tuple[Any, Series]], window: Window
) -> None:
    for position, (target, series) in enumerate(lines):
        for at_s in series.times_s:
            axes.broken_barh([(at_s - window.start_s, window.step_s)], (position, 0.9), color=f"C{position}")
        axes.text(0.01, position + 0.45, series.named(target["legendFormat"]), fontsize=7, va="center")
    axes.set_xlim(0, window.end_s - window.start_s)
    axes.set_yticks([])
    axes.tick_params(labelsize=6.5)


_PAINTERS = {"timeseries": _paint_lines, "stat": _paint_stat, "state-timeline": _paint_states}


def _mark(axes: Axes, events: Sequence[tuple[Any, tuple[Series, ...]]], window: Window) -> None:
    for event, found in events:
        for series in found:
            for at_s in _beginnings(series, window.step_s):
                axes.axvline(
                    at_s - window.start_s, color=event["iconColor"], linewidth=0.8, linestyle="--", zorder=1
                )


def _within(event: Mapping[str, Any], step_s: float) -> str:
    # Grafana looks back by whole minutes; a short picture is asked in finer steps, each event in one.
    expr: str = event["expr"]
    return expr.replace(f"offset {event['step']}", f"offset {round(step_s * 1000)}ms")


def _beginnings(series: Series, step_s: float) -> list[float]:
    """When it happened: of neighbouring steps, the first."""
    before = (None, *series.times_s)
    return [
        at
        for last, at in zip(before, series.times_s, strict=False)
        if last is None or at - last > 1.5 * step_s
    ]


def _are_positive(lines: Sequence[tuple[Any, Series]]) -> bool:
    return bool(lines) and all(value > 0 for _, series in lines for value in series.values if value == value)


def _said(value: float, unit: str) -> str:
    return f"{value:.1f} s" if unit == "s" else f"{value:.4g}"


if __name__ == "__main__":
    main()
