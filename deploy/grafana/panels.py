"""What a panel is, before it is Grafana's: a question, the queries that answer it, and what to do.

No panel without a unit and a remedy: whoever looks at it at night should not have to guess either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["lines", "stack", "stat", "states"]
"""Lines over time; lines stacked; the newest number, large; one text at a time, as a band."""

Seen = Literal["always", "paper", "auto"]
"""Which controller's runs have it: the search is the default controller's, eqs. 4-9 are the paper's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One PromQL expression and the name of its lines, with labels as ``{{replica}}``."""

    expr: str
    legend: str
    is_thick: bool = False
    """Drawn over the others: the centre of a fan."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One picture of a dashboard."""

    title: str
    unit: str
    """Grafana's id of a unit: ``s``, ``Bps``, ``short``, …"""
    shows: str
    """What it shows, in a sentence or two."""
    remedy: str
    """What to do when it looks bad."""
    queries: tuple[Query, ...]
    kind: Kind = "lines"
    width: int = 12
    """Of 24 columns."""
    height: int = 8
    is_logarithmic: bool = False
    is_from_zero: bool = False
    decimals: int | None = None
    warns_above: float | None = None
    """A stat turns orange from here on."""
    warns_below: float | None = None
    """A stat is orange below this."""
    seen: Seen = "always"

    def __post_init__(self) -> None:
        for name, text in (("unit", self.unit), ("shows", self.shows), ("remedy", self.remedy)):
            if not text.strip():
                raise ValueError(f"panel {self.title!r} has no {name}; say it, people rely on it")
        if not self.queries:
            raise ValueError(f"panel {self.title!r} has no query; give it one")

    @property
    def description(self) -> str:
        """What Grafana shows at the panel's corner, as Markdown."""
        only = {"always": "", "paper": " Only under `paper`.", "auto": " Only under `auto`."}[self.seen]
        return f"{self.shows}{only}\n\n**When it looks bad:** {self.remedy}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Panels under one heading."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened, marked on every panel."""

    name: str
    expr: str
    """Above 0 where it happened."""
    title: str
    color: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """A dashboard."""

    uid: str
    title: str
    description: str
    rows: tuple[Row, ...]
    events: tuple[Event, ...] = ()
    has_run: bool
    """Shows one run, which a variable picks."""
    window: str
    """Time that is shown at first, as Grafana writes it: ``now-1h``."""

    @property
    def panels(self) -> tuple[Panel, ...]:
        """All panels, in order."""
        return tuple(panel for row in self.rows for panel in row.panels)
