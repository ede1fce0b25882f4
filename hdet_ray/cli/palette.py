"""The charts' few colours, distinct to colour-blind eyes and in print (after Okabe and Ito)."""

from __future__ import annotations

from collections.abc import Mapping

from hdet_ray.core.plan import Phase

BASE = "#0072B2"
"""The run itself."""
PLAIN = "#8A8F98"
"""Plain one-cycle from the given rate: what would have happened."""
SCOUT = "#0072B2"
PAIRS = "#D55E00"
FOUND = "#009E73"
DEAD = "#8A8F98"
REFERENCES = ("#8A8F98", "#009E73", "#CC79A7", "#E69F00")
"""Other runs, in the order that they were given."""

BANDS: Mapping[Phase, str | None] = {
    "scout": "#0072B2",
    "pairs": "#D55E00",
    "fan_out": None,
    "train": None,
}
"""Background of a phase, drawn faintly; training has none, with or without a spread."""
BAND_OPACITY = 0.10

PHASE_NAMES: Mapping[Phase, str] = {
    "scout": "scout rounds",
    "pairs": "pair rounds",
    "fan_out": "fan-out and converge",
    "train": "training",
}

_REPLICAS = ("#2A558C", "#3F86C4", "#6FB1DE", "#A3D0EC")
"""Dark to light, all of them visible on a white and on a dark ground."""


def replica_color(replica: int, num_replicas: int) -> str:
    """A replica's blue: the lowest number is the darkest."""
    if num_replicas <= 1:
        return BASE
    place = replica / (num_replicas - 1) * (len(_REPLICAS) - 1)
    return _REPLICAS[round(place)]


def reference_color(place: int) -> str:
    """The colour of the reference at a place."""
    return REFERENCES[place % len(REFERENCES)]
