"""What an operator may ask for: checked here, folded into the state at a boundary or not at all."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from hdet_ray.exceptions import OverrideError


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """Set or scale one value, from one round on.

    ``set`` pins the value and freezes the controller for it until it expires or is removed. ``scale``
    multiplies the value once; when it expires or is removed, the factor is taken back.
    """

    id: str
    hparam: str
    op: Literal["set", "scale"]
    value: float
    group: int | None = None
    """Optimizer parameter group; ``None``: all."""
    apply_at_round: int | None = None
    """``None``: the next round to be planned."""
    expires_after_rounds: int | None = None
    """Rounds in force, counted from the one it applied at; ``None``: until removed."""

    def __post_init__(self) -> None:
        if self.op not in ("set", "scale"):
            raise OverrideError(f"op={self.op!r} is unknown; use 'set' or 'scale'")
        if not math.isfinite(self.value):
            raise OverrideError(f"value={self.value} must be a finite number")
        if self.op == "scale" and self.value <= 0:
            raise OverrideError(f"scale by {self.value}: a factor must be above 0; 0.5 halves the value")
        if self.apply_at_round is not None and self.apply_at_round < 0:
            raise OverrideError(f"apply_at_round={self.apply_at_round}: rounds count from 0")
        if self.expires_after_rounds is not None and self.expires_after_rounds < 1:
            raise OverrideError(f"expires_after_rounds={self.expires_after_rounds} must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """Take an override back, pending or in force."""

    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Freeze:
    """Stop the controller for one hyperparameter, or let it go on."""

    hparam: str
    is_frozen: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SetBounds:
    """New bounds of a hyperparameter, for every group."""

    hparam: str
    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise OverrideError(
                f"bounds ({self.low}, {self.high}) of {self.hparam!r} must be finite, low below high"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class OverrideRecord:
    """An override and what became of it."""

    override: Override
    status: Literal["pending", "applied", "expired", "removed", "refused"] = "pending"
    applied_round: int | None = None
    reason: str = ""
    """Why it was refused."""
