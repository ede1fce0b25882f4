"""The demo's verdict: three runs in one honest paragraph, also when the search did not help."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hdet_ray.view.numbers import loss_text, rate_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the demo measured."""

    given_rate: float
    tuned_rate: float
    plain_loss: float | None
    """Test loss of plain one-cycle from the given rate; None where not finite, here and below."""
    auto_loss: float | None
    """Of the run that searched, from the same rate."""
    tuned_loss: float | None
    """Of plain one-cycle at the tuned rate."""
    found_rate: float | None
    """None: no search took place."""
    search_steps: int
    total_steps: int
    candidates: int
    dead: int
    is_suspect: bool = False

    @property
    def gap_closed(self) -> float | None:
        """Share of the gap between plain and tuned that the search closed; None where there is no gap."""
        if self.plain_loss is None or self.auto_loss is None or self.tuned_loss is None:
            return None
        gap = self.plain_loss - self.tuned_loss
        return (self.plain_loss - self.auto_loss) / gap if gap > 0 else None

    @property
    def behind_tuned(self) -> float | None:
        """How far the searching run's test loss lies above the tuned one's, relative; negative: below."""
        if self.auto_loss is None or self.tuned_loss is None or self.tuned_loss <= 0:
            return None
        return self.auto_loss / self.tuned_loss - 1

    def paragraph(self) -> str:
        """The verdict in words."""
        off = self.tuned_rate / self.given_rate
        side = f"{_times(off)} too low" if off > 1 else f"{_times(1 / off)} too high"
        given, tuned = rate_text(self.given_rate), rate_text(self.tuned_rate)
        return (
            f"All three runs have {self.total_steps} steps. From max_lr {given}, {side}, plain one-cycle "
            f"ended at a test loss of {_loss(self.plain_loss)}. {self._what_the_search_did()} One-cycle at a "
            f"well-tuned {tuned}, with no search to pay for, ended at {_loss(self.tuned_loss)}. "
            f"{self._comparison()}"
        )

    def _what_the_search_did(self) -> str:
        if self.found_rate is None:
            return f"These steps are too few for a search: the same start ended at {_loss(self.auto_loss)}."
        factor = self.found_rate / self.given_rate
        move = f"{_times(factor)} higher" if factor >= 1 else f"{_times(1 / factor)} lower"
        suspect = " The search itself calls that result suspect." if self.is_suspect else ""
        share = self.search_steps / self.total_steps
        return (
            f"From the same start, the replicas tried {self.candidates} candidates ({self.dead} of them "
            f"died) in the first {self.search_steps} steps ({share:.0%} of the run), found "
            f"{rate_text(self.found_rate)}, {move}, and the run ended at {_loss(self.auto_loss)}.{suspect}"
        )

    def _comparison(self) -> str:
        closed, behind = self.gap_closed, self.behind_tuned
        if self.auto_loss is None:
            return "The searching run's loss is not finite: the search failed here."
        if behind is None:
            return "The tuned run's loss is not finite, so there is nothing to compare with."
        place = (
            f"{behind:.1%} behind the tuned run" if behind >= 0 else f"{-behind:.1%} ahead of the tuned run"
        )
        if self.found_rate is None:
            return f"Without a search the run ended {place}."
        if self.plain_loss is None:
            return f"The search ended {place}, where plain one-cycle's loss is not finite."
        if closed is None:
            return (
                f"The given rate was no worse than the tuned one: no gap to close. The search ended {place}."
            )
        if closed <= 0:
            return f"The search did not help: it ended no lower than plain one-cycle from there, {place}."
        return f"The search closed {closed:.0%} of the gap and ended {place}."


def _times(factor: float) -> str:
    return f"{factor:.0f}×" if factor >= 10 else f"{factor:.2g}×"


def _loss(loss: float | None) -> str:
    return "no finite number" if loss is None or not math.isfinite(loss) else loss_text(loss)
