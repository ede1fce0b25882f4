"""The report as one picture (matplotlib), for a README or a message."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogFormatterMathtext, LogLocator, NullFormatter

from hdet_ray.cli import palette
from hdet_ray.view.numbers import loss_text, rate_text
from hdet_ray.view.series import Band, Curve, ReportSeries, SearchSeries, TrialPhase

_INK = "#2B2F36"
_MUTED = "#6B7280"
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10.0,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": "#C4C8CE",
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E6E8EB",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "legend.frameon": False,
    "legend.fontsize": 9.0,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}
_WIDTH_IN = 12.5
_ROW_HEIGHT_IN = 3.7
_TITLE_IN = 0.85
_LINE_IN = 0.2
_SUBTITLE_CHARACTERS = 142
_MAX_NAMED_REPLICAS = 8

Draw = Callable[[Axes], None]


def write_png(series: ReportSeries, path: Path, *, title: str, subtitle: str) -> None:
    """Draw a run.

    Args:
        series: What to draw.
        path: The picture; its folder exists.
        title: One line, large.
        subtitle: A paragraph below it.
    """
    with mpl.rc_context(_STYLE):
        rows = _rows(series)
        lines = textwrap.wrap(subtitle, _SUBTITLE_CHARACTERS)
        header_in = _TITLE_IN + _LINE_IN * len(lines)
        height = header_in + _ROW_HEIGHT_IN * len(rows)
        figure = Figure(figsize=(_WIDTH_IN, height), dpi=144)
        grid = GridSpec(
            len(rows), 2, figure=figure, left=0.075, right=0.975, hspace=0.42, wspace=0.2,
            top=1 - (header_in + 0.25) / height, bottom=0.62 / height,
        )  # fmt: skip
        figure.text(0.03, 1 - 0.38 / height, title, fontsize=17, fontweight="bold", va="center")
        text: dict[str, Any] = {"fontsize": 10.5, "color": _MUTED, "va": "top", "linespacing": 1.4}
        figure.text(0.03, 1 - 0.62 / height, "\n".join(lines), **text)
        for row, draws in enumerate(rows):
            for column, draw in enumerate(draws):
                place = grid[row, :] if len(draws) == 1 else grid[row, column]
                draw(figure.add_subplot(place))
        figure.savefig(path)


def _rows(series: ReportSeries) -> list[list[Draw]]:
    """The panels that this run has something to say in, two a row below the schedule."""
    panels: list[Draw] = []
    if series.search is not None:
        search = series.search
        panels.append(lambda axes: _draw_fan(axes, series))
        panels.append(lambda axes: _draw_search(axes, search))
    elif series.fan:
        panels.append(lambda axes: _draw_fan(axes, series))
    panels.append(lambda axes: _draw_losses(axes, series))
    if series.spread is not None:
        panels.append(lambda axes: _draw_spread(axes, series))
    panels += [_explored_panel(curve, series.bands) for curve in series.explored]
    pairs = [panels[i : i + 2] for i in range(0, len(panels), 2)]
    return [[lambda axes: _draw_schedule(axes, series)], *pairs]


def _draw_schedule(axes: Axes, series: ReportSeries) -> None:
    axes.set_title("Learning rate")
    if series.one_cycle is not None:
        _plot(
            axes, series.one_cycle, palette.PLAIN, label="plain one-cycle, as given", dashed=True, width=1.8
        )
    for place, curve in enumerate(series.reference_rates, start=1):
        _plot(axes, curve, palette.reference_color(place), label=curve.label, dashed=True, width=1.6)
    for i, curve in enumerate(series.fan):
        _plot(axes, curve, palette.replica_color(i, len(series.fan)), width=0.8, alpha=0.8)
    _plot(axes, series.base, palette.BASE, label="this run", width=2.4)
    _finish_step_axis(axes, series.bands)
    _log_rates(axes)
    _legend_in_title_row(axes, [*_lines(axes), *_band_patches(series.bands)])


def _draw_fan(axes: Axes, series: ReportSeries) -> None:
    axes.set_title("Rates of the replicas")
    for i, curve in enumerate(series.fan):
        _plot(axes, curve, palette.replica_color(i, len(series.fan)), label=curve.label, width=1.8)
    _finish_step_axis(axes, series.bands)
    steps = [x for curve in series.fan for x in curve.x]
    if steps:
        axes.set_xlim(min(steps), max(steps))
    _log_rates(axes)
    _legend_in_title_row(axes, _named_replicas(_lines(axes)))


def _draw_search(axes: Axes, search: SearchSeries) -> None:
    axes.set_title("What the search tried")
    axes.set_xscale("log")
    live = [t for t in search.trials if not t.is_dead and t.loss is not None]
    styles: dict[TrialPhase, tuple[str, str, str]] = {
        "scout": (palette.SCOUT, "o", "scout"),
        "pairs": (palette.PAIRS, "D", "pair"),
    }
    for phase, curve in search.parabolas:
        _plot(axes, curve, styles[phase][0], width=1.8, alpha=0.6)
    for phase, (color, marker, name) in styles.items():
        mine = [t for t in live if t.phase == phase]
        losses = [t.loss for t in mine if t.loss is not None]
        axes.scatter(
            [t.rate for t in mine], losses, c=color, marker=marker, s=44, label=name, edgecolors="white",
            linewidths=0.8, zorder=3,
        )  # fmt: skip
    dead = [t.rate for t in search.trials if t.is_dead]
    if dead:
        # Beside the live ones a dead one's loss has no place on the scale, where it has one at all.
        at_top = axes.get_xaxis_transform()
        axes.scatter(
            dead,
            [0.76] * len(dead),
            transform=at_top,
            c=palette.DEAD,
            marker="x",
            s=46,
            linewidths=2.0,
            label="dead",
        )
    _legend_in_title_row(axes, axes.get_legend_handles_labels()[0])
    rates = [math.log10(t.rate) for t in search.trials] + [math.log10(search.started_from)]
    margin = 0.08 * (max(rates) - min(rates)) + 0.05
    axes.set_xlim(10 ** (min(rates) - margin), 10 ** (max(rates) + margin))
    _mark_rate(axes, search.started_from, "given", palette.PLAIN, height=0.90)
    if search.result is not None:
        _mark_rate(
            axes,
            search.result,
            "found, suspect" if search.is_suspect else "found",
            palette.FOUND,
            height=0.985,
        )
    axes.set_xlabel("learning rate")
    untrained = "" if search.untrained_loss is None else f" (untrained: {loss_text(search.untrained_loss)})"
    axes.set_ylabel(f"probe loss{untrained}")
    axes.margins(y=0.22)


def _mark_rate(axes: Axes, rate: float, name: str, color: str, *, height: float) -> None:
    """A vertical line with its name at a height of the panel, on the side that has more room."""
    low, high = axes.get_xlim()
    is_left = math.log(rate / low) > math.log(high / rate)
    axes.axvline(rate, color=color, linewidth=1.8, linestyle="--" if name == "given" else "-", zorder=2)
    axes.annotate(
        f"{name} {rate_text(rate)}", (rate, height), xycoords=axes.get_xaxis_transform(), fontsize=9,
        va="top", ha="right" if is_left else "left", xytext=(-5 if is_left else 5, 0),
        textcoords="offset points", color=_MUTED if name == "given" else color, fontweight="bold",
        bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
    )  # fmt: skip


def _draw_losses(axes: Axes, series: ReportSeries) -> None:
    axes.set_title("Training loss by round")
    for place, curve in enumerate(series.reference_losses):
        _plot(axes, curve, palette.reference_color(place), label=curve.label, dashed=True, width=1.8)
    references = _lines(axes)
    for i, curve in enumerate(series.losses):
        _plot(
            axes,
            curve,
            palette.replica_color(i, len(series.losses)),
            label=curve.label,
            width=1.5,
            marker="o",
        )
    replicas = _lines(axes)[len(references) :]
    _finish_step_axis(axes, series.bands)
    axes.set_ylabel("mean training loss")
    if references:
        axes.legend(handles=references, loc="upper right", handlelength=2.6)
    _legend_in_title_row(axes, _named_replicas(replicas))


def _draw_spread(axes: Axes, series: ReportSeries) -> None:
    axes.set_title("How far the replicas' losses lie apart")
    if series.spread is not None:
        _plot(axes, series.spread, palette.BASE, width=1.8, marker="o")
    _finish_step_axis(axes, series.bands)
    axes.set_ylabel("highest − lowest loss")
    axes.set_ylim(bottom=0)


def _explored_panel(curve: Curve, bands: Sequence[Band]) -> Draw:
    def draw(axes: Axes) -> None:
        axes.set_title(f"Base value of {curve.label}")
        _plot(axes, curve, palette.BASE, width=1.8, marker="o")
        _finish_step_axis(axes, bands)
        axes.set_ylabel(curve.label)

    return draw


def _plot(
    axes: Axes,
    curve: Curve,
    color: str,
    *,
    width: float,
    label: str | None = None,
    dashed: bool = False,
    alpha: float = 1.0,
    marker: str | None = None,
) -> None:
    values = [float("nan") if y is None else y for y in curve.y]
    style = (0, (4, 2)) if dashed else "-"
    axes.plot(
        curve.x,
        values,
        color=color,
        linewidth=width,
        linestyle=style,
        alpha=alpha,
        label=label,
        marker=marker,
        markersize=4,
    )


def _finish_step_axis(axes: Axes, bands: Sequence[Band]) -> None:
    for band in bands:
        color = palette.BANDS[band.phase]
        if color is not None:
            axes.axvspan(
                band.first_step, band.end_step, color=color, alpha=palette.BAND_OPACITY, linewidth=0, zorder=0
            )
    if bands:
        axes.set_xlim(bands[0].first_step, bands[-1].end_step)
    axes.set_xlabel("step")


def _log_rates(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(numticks=8))
    axes.yaxis.set_major_formatter(LogFormatterMathtext())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel("learning rate")


def _lines(axes: Axes) -> list[Line2D]:
    """The lines that have a name."""
    return [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]


def _named_replicas(lines: Sequence[Line2D]) -> list[Line2D]:
    """Short names: ``replica 0``, ``1``, ``2``; of many, the first and the last."""
    shown = list(lines) if len(lines) <= _MAX_NAMED_REPLICAS else [lines[0], lines[-1]]
    for line in shown[1:]:
        line.set_label(str(line.get_label()).removeprefix("replica "))
    if len(lines) > _MAX_NAMED_REPLICAS:
        shown[-1].set_label(f"to {shown[-1].get_label()}")
    return shown


def _band_patches(bands: Sequence[Band]) -> list[Patch]:
    phases = dict.fromkeys(band.phase for band in bands)
    return [
        Patch(facecolor=color, alpha=2 * palette.BAND_OPACITY, label=palette.PHASE_NAMES[phase])
        for phase in phases
        if (color := palette.BANDS[phase]) is not None
    ]


def _legend_in_title_row(axes: Axes, handles: Sequence[Artist]) -> None:
    """Above the panel, at the right of its title: there it covers nothing."""
    if not handles:
        return
    first = axes.get_legend()
    axes.legend(
        handles=handles, loc="lower right", bbox_to_anchor=(1.0, 0.995), ncols=len(handles), handlelength=1.3,
        columnspacing=1.1, borderaxespad=0.3, handletextpad=0.5,
    )  # fmt: skip
    if first is not None:
        axes.add_artist(first)
