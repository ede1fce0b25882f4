"""The search's chart: each candidate's probe loss over its rate, and what was concluded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

from hdet_ray.core.state import ScheduleState
from hdet_ray.view.history import History
from hdet_ray.view.numbers import loss_text, rate_text
from hdet_ray.view.series import SearchSeries, Trial, series_of
from hdet_service.console.layers import Layers, robust
from hdet_service.console.svg import Axis, Chart, Dots, Hover, Line, Rule, axis_around


def search(state: ScheduleState) -> Chart | None:
    """What the search of a run has tried so far; None where there is none, or nothing yet."""
    series = series_of(History(state)).search  # the newest state holds all of the search's points
    if series is None:
        return None
    dead = [t for t in series.trials if t.is_dead]
    losses = [t.loss for t in series.trials if not t.is_dead and t.loss is not None]
    y = axis_around([v for v in losses if v <= robust(losses)], margin=0.12)
    untrained = series.untrained_loss
    said = "" if untrained is None else f" The untrained model has {loss_text(untrained)}."
    rules = _rules(series)
    rates = [*(t.rate for t in series.trials), *(rule.x for rule in rules)]
    return Chart(
        name="search",
        title="What the search tried",
        note="Probe loss of each candidate after its round, and parabolas through the best." + said,
        x=axis_around(rates, is_log=True),
        y=y,
        x_label="learning rate",
        layers=_layers(series, y),
        rules=rules,
        hover=_hover(series.trials),
        summary=f"{len(series.trials)} candidates, {len(dead)} of them dead; {rules[-1].text}.",
    )


def _layers(series: SearchSeries, y: Axis) -> Layers:
    layers: Layers = [
        Line(points=list(zip(curve.x, curve.y, strict=True)), css=f"fit {phase}")
        for phase, curve in series.parabolas
    ]
    for phase, name in (("scout", "scout"), ("pairs", "pair")):
        points = [
            (t.rate, min(t.loss, y.high))
            for t in series.trials
            if t.phase == phase and not t.is_dead and t.loss is not None
        ]
        if points:
            layers.append(Dots(points=points, css=phase, label=name))
    top = y.high - 0.04 * (y.high - y.low)
    dead = [(t.rate, top) for t in series.trials if t.is_dead]
    if dead:
        layers.append(Dots(points=dead, css="dead", label="dead", is_cross=True))
    return layers


def _rules(series: SearchSeries) -> list[Rule]:
    """The rate that was given and the one that was found; their words lead away from each other."""
    given, result = series.started_from, series.result
    is_lower = result is not None and given < result
    rules = [Rule(x=given, css="given", text=f"given {rate_text(given)}", is_left=is_lower)]
    if result is not None:
        suspect = ", suspect" if series.is_suspect else ""
        text = f"found {rate_text(result)}{suspect}"
        rules.append(Rule(x=result, css="found", text=text, is_left=not is_lower))
    return rules


def _hover(trials: Sequence[Trial]) -> Hover:
    ordered = sorted(trials, key=lambda t: t.rate)
    together = [list(group) for _, group in groupby(ordered, key=lambda t: t.rate)]
    rows = []
    for phase, name in (("scout", "scout"), ("pairs", "pair")):
        texts = [", ".join(_text(t) for t in group if t.phase == phase) or "–" for group in together]
        rows.append((name, phase, texts))
    return Hover(
        xs=[group[0].rate for group in together],
        titles=[f"rate {rate_text(group[0].rate)}" for group in together],
        rows=rows,
    )


def _text(trial: Trial) -> str:
    loss = loss_text(trial.loss if trial.loss is not None else math.nan)
    return f"{loss}, dead" if trial.is_dead else loss
