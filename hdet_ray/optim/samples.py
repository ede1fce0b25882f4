"""How many samples a run has trained on: ranks count their own, reports tell them, checkpoints keep the sum.

Samples that were used count, whatever became of the weights: those of a search round too, whose weights are
put back, and those of a round that was rolled back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol


class CountsSamples(Protocol):
    """A sampler, or another source of samples, that counts what it has handed out."""

    @property
    def samples_taken(self) -> int:
        """Samples that this rank has taken since the object was made."""


class SampleCount:
    """This rank's samples since the newest boundary, and those of all ranks since step 0."""

    def __init__(self) -> None:
        self.total = 0.0
        """Of all ranks, until the newest boundary, without what a restart made undone."""
        self._source: CountsSamples | None = None
        self._told = 0

    @property
    def in_round(self) -> int:
        """This rank's since the newest boundary."""
        return self._taken - self._told

    def count(self, source: CountsSamples) -> None:
        """Count what this hands out from now on, beside what was counted in this round."""
        in_round = self.in_round
        self._source = source
        self.restore(self.total, in_round)

    def restore(self, total: float, in_round: int) -> None:
        """Go on from what a checkpoint counted."""
        self.total, self._told = total, self._taken - in_round

    def take_new(self) -> float:
        """This rank's since the newest boundary, which is now; not a number where nothing counts."""
        if self._source is None:
            return math.nan
        new = self.in_round
        self._told += new
        return float(new)

    def told(self, facts: Mapping[str, float]) -> dict[str, float]:
        """A round's samples as they stand among its report's facts, with the total that they lead to."""
        if not facts:
            return {}
        self.total += facts["samples"]  # a float: it holds whole numbers up to 2^53 exactly
        return {**facts, "samples_total": self.total}

    @property
    def _taken(self) -> int:
        return 0 if self._source is None else self._source.samples_taken
