"""Charts as SVG that stretches with the page while its text and strokes stay what they are.

Shapes lie in a nested drawing of 1000 x 240 units that is stretched to the plot's width, with strokes that
are not scaled; labels lie outside of it, at per cent of the width. Colours are classes of the style sheet,
so that a picture follows light and dark, and no style attribute is needed. Every text is escaped here.
"""

from __future__ import annotations

import bisect
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 1000, 240
_Y_TICKS = 5
_MAX_LOG_TICKS = 7

Point = tuple[float, float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """A range of values, and how it is divided."""

    low: float
    high: float
    is_log: bool = False

    def place(self, value: float) -> float:
        """Where a value lies: 0 at the low end, 1 at the high one."""
        if self.is_log:
            floor = math.log(self.low)
            return (math.log(max(value, 1e-300)) - floor) / (math.log(self.high) - floor)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, most: int) -> list[float]:
        """Round values on it, at most about this many."""
        return _log_ticks(self.low, self.high, most) if self.is_log else _linear_ticks(self, most)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line with gaps where y is None."""

    points: Sequence[Point]
    css: str
    label: str = ""
    """Stands in the legend."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Area:
    """A band between two lines: (x, low, high)."""

    points: Sequence[tuple[float, float | None, float | None]]
    css: str
    label: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dots:
    """Single points; a cross where ``is_cross``."""

    points: Sequence[tuple[float, float]]
    css: str
    label: str = ""
    is_cross: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Boxes:
    """Filled rectangles: (x, end of x, y, end of y)."""

    boxes: Sequence[tuple[float, float, float, float]]
    css: str
    label: str = ""


Layer = Line | Area | Dots | Boxes


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A vertical line, with a word beside its top."""

    x: float
    css: str
    text: str = ""
    is_left: bool | None = None
    """On which side of it the word stands; None: where there is more room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shade:
    """A stretch of x behind everything."""

    first: float
    end: float
    css: str
    label: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hover:
    """What is read off at the x nearest to the pointer."""

    xs: Sequence[float]
    titles: Sequence[str]
    rows: Sequence[tuple[str, str, Sequence[str]]]
    """Name, class, and a text for each x."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One picture and what is said about it."""

    name: str
    title: str
    note: str
    x: Axis
    y: Axis
    x_label: str = "step"
    layers: Sequence[Layer] = ()
    """From back to front."""
    rules: Sequence[Rule] = ()
    shades: Sequence[Shade] = ()
    hover: Hover | None = None
    is_wide: bool = False
    summary: str = ""
    """For those who can't see it."""

    @property
    def legend(self) -> list[tuple[str, str]]:
        """Class and name of what has a name, each once."""
        named = [(item.css, item.label) for item in (*self.shades, *self.layers) if item.label]
        return list(dict.fromkeys(named))

    @property
    def y_labels(self) -> Markup:
        """The column beside the plot."""
        labels = [
            f'<text x="100%" dx="-6" y="{self._y(value) + 4:.1f}" text-anchor="end">'
            f"{escape(number_text(value))}</text>"
            for value in self.y.ticks(_Y_TICKS)
        ]
        return Markup(f'<svg class="y-labels" aria-hidden="true" height="{HEIGHT}">{"".join(labels)}</svg>')

    @property
    def x_labels(self) -> Markup:
        """The row below the plot."""
        ticks = self.x.ticks(_MAX_LOG_TICKS if self.x.is_log else 6)
        labels = []
        for value in ticks:
            share = self.x.place(value)
            anchor = "start" if share < 0.03 else "end" if share > 0.97 else "middle"
            place = f'x="{100 * share:.2f}%" y="15" text-anchor="{anchor}"'
            labels.append(f"<text {place}>{escape(number_text(value))}</text>")
        return Markup(f'<svg class="x-labels" aria-hidden="true" height="20">{"".join(labels)}</svg>')

    @property
    def plot(self) -> Markup:
        """The plot itself."""
        grid = [f'<path class="grid" d="M0 {self._y(v):.1f}H{WIDTH}"/>' for v in self.y.ticks(_Y_TICKS)]
        shades = [self._shade(shade) for shade in self.shades]
        marks = [layer for layer in self.layers if isinstance(layer, Dots) and layer.is_cross]
        drawn = [layer for layer in self.layers if layer not in marks]
        shapes = "".join([*shades, *grid, *map(self._rule, self.rules), *map(self._shape, drawn)])
        words = "".join(self._word(rule) for rule in self.rules if rule.text)
        words += "".join(map(self._crosses, marks))
        return Markup(
            f'<svg class="plot" height="{HEIGHT}" aria-hidden="true">'
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" width="100%" height="{HEIGHT}">'
            f"{shapes}</svg>{words}</svg>"
        )

    @property
    def hover_json(self) -> str:
        """For the page's script: places in per cent, and texts."""
        if self.hover is None:
            return ""
        return json.dumps(
            {
                "x": [round(100 * self.x.place(x), 2) for x in self.hover.xs],
                "t": list(self.hover.titles),
                "r": [{"n": name, "c": css, "v": list(texts)} for name, css, texts in self.hover.rows],
            },
            separators=(",", ":"),
        )

    def _x(self, value: float) -> float:
        return WIDTH * self.x.place(value)

    def _y(self, value: float) -> float:
        # Far outside is as good as outside, and keeps numbers short.
        return HEIGHT * (1 - min(max(self.y.place(value), -1.0), 2.0))

    def _shape(self, layer: Layer) -> str:
        if isinstance(layer, Line):
            return f'<path class="line {layer.css}" d="{self._line(layer.points)}"/>'
        if isinstance(layer, Area):
            return f'<path class="area {layer.css}" d="{self._area(layer.points)}"/>'
        if isinstance(layer, Boxes):
            return f'<path class="area {layer.css}" d="{"".join(map(self._box, layer.boxes))}"/>'
        # A stroke of no length with round ends is a disc, whatever the drawing is stretched to.
        path = "".join(f"M{self._x(x):.1f} {self._y(y):.1f}h.01" for x, y in layer.points)
        return f'<path class="dots {layer.css}" d="{path}"/>'

    def _crosses(self, layer: Dots) -> str:
        """As text, which is not stretched."""
        return "".join(
            f'<text class="cross {layer.css}" x="{100 * self.x.place(x):.2f}%" y="{self._y(y) + 5:.1f}" '
            'text-anchor="middle">×</text>'
            for x, y in layer.points
        )

    def _line(self, points: Sequence[Point]) -> str:
        path, is_on = [], False
        for x, y in points:
            if y is None:
                is_on = False
                continue
            path.append(f"{'L' if is_on else 'M'}{self._x(x):.1f} {self._y(y):.1f}")
            is_on = True
        return "".join(path)

    def _area(self, points: Iterable[tuple[float, float | None, float | None]]) -> str:
        path: list[str] = []
        run: list[tuple[float, float, float]] = []
        for x, low, high in [*points, (0.0, None, None)]:
            if low is not None and high is not None:
                run.append((self._x(x), self._y(low), self._y(high)))
                continue
            if len(run) > 1:
                there = "L".join(f"{px:.1f} {top:.1f}" for px, _, top in run)
                back = "L".join(f"{px:.1f} {bottom:.1f}" for px, bottom, _ in reversed(run))
                path.append(f"M{there}L{back}Z")
            run = []
        return "".join(path)

    def _box(self, box: tuple[float, float, float, float]) -> str:
        left, right, bottom, top = self._x(box[0]), self._x(box[1]), self._y(box[2]), self._y(box[3])
        return f"M{left:.1f} {bottom:.1f}H{right:.1f}V{top:.1f}H{left:.1f}Z"

    def _shade(self, shade: Shade) -> str:
        first, end = (min(max(self._x(v), 0.0), WIDTH) for v in (shade.first, shade.end))
        box = f'x="{first:.1f}" y="0" width="{end - first:.1f}" height="{HEIGHT}"'
        return f'<rect class="shade {shade.css}" {box}/>'

    def _rule(self, rule: Rule) -> str:
        return f'<path class="rule {rule.css}" d="M{self._x(rule.x):.1f} 0V{HEIGHT}"/>'

    def _word(self, rule: Rule) -> str:
        share = self.x.place(rule.x)
        is_left = share > 0.6 if rule.is_left is None else rule.is_left
        is_left = share > 0.75 or (is_left and share > 0.25)  # near an edge there is room on one side only
        side = 'text-anchor="end" dx="-6"' if is_left else 'dx="6"'
        place = f'x="{100 * share:.2f}%" y="{HEIGHT - 8}" {side}'
        return f'<text class="word {rule.css}" {place}>{escape(rule.text)}</text>'


def axis_around(
    values: Iterable[float | None], *, is_log: bool = False, from_zero: bool = False, margin: float = 0.06
) -> Axis:
    """An axis that holds these values, with some room above and below."""
    known = [v for v in values if v is not None and math.isfinite(v) and (v > 0 or not is_log)]
    if not known:
        return Axis(low=1e-3, high=1.0, is_log=True) if is_log else Axis(low=0.0, high=1.0)
    low, high = min(known), max(known)
    if is_log:
        room = max((high / low) ** margin, 1.05)
        return Axis(low=low / room, high=high * room, is_log=True)
    low = min(low, 0.0) if from_zero else low
    room = (high - low) * margin or abs(high) * 0.05 or 1.0
    return Axis(low=low if from_zero else low - room, high=high + room)


def nearest(sorted_values: Sequence[float], value: float) -> int:
    """Index of the value nearest to this one."""
    place = bisect.bisect_left(sorted_values, value)
    around = [i for i in (place - 1, place) if 0 <= i < len(sorted_values)]
    return min(around, key=lambda i: abs(sorted_values[i] - value))


def number_text(value: float) -> str:
    """A tick's label: ``0.01``, ``1.5k``, ``2e-5``."""
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 10_000_000:
        return f"{value / 1e6:g}M" if size < 1e10 else f"{value:.0e}"
    if size >= 10_000:
        return f"{value / 1000:g}k"
    if size >= 1000:
        return f"{value:,g}"
    if size >= 0.001:
        return f"{value:.6g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def _linear_ticks(axis: Axis, most: int) -> list[float]:
    rough = (axis.high - axis.low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
    first = math.ceil(axis.low / step - 1e-9)
    last = math.floor(axis.high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    decades = [10.0**e for e in range(first, last + 1)]
    if len(decades) > most:
        stride = math.ceil(len(decades) / most)
        return decades[::stride]
    if len(decades) >= 3:
        return decades
    for parts in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)):
        ticks = [m * 10.0**e for e in range(first - 1, last + 1) for m in parts]
        inside = [t for t in ticks if low <= t <= high]
        if len(inside) >= 2:
            return inside[:: math.ceil(len(inside) / most)]
    return [math.sqrt(low * high)]
