"""A hyperparameter tied to its target: one number, where it may go, and how to set it.

`HyperparameterLike` is what a user gives, `BoundHyperparameter` what the schedulers take.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import nn
from torch.optim import Optimizer

from hdet_ray.exceptions import ConfigError

Scale = Literal["log", "linear"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundHyperparameter:
    """One number that the schedulers move.

    Raises:
        ConfigError: A field is outside its range; the text says which and what would do.
    """

    name: str
    group: int
    """The optimizer's parameter group, 0 where there are none."""
    scale: Scale
    """On which scale its base value moves."""
    bounds: tuple[float, float]
    base: float
    """The starting value, not 0: replicas use multiples of it."""
    alpha: float
    """Replicas' values lie in ``base * [1 - alpha, 1 + alpha]``, clipped to the bounds (HDET, eq. 1)."""
    sigma: float
    """Temperature of the losses' softmax (HDET, eqs. 4-5)."""
    step_size: float
    """λ of HDET, eq. 8."""
    momentum: float
    """β of HDET, eq. 7."""
    is_regularizer: bool
    """The training loss can't judge it: that always prefers less of it."""
    set: Callable[[float], None]
    get: Callable[[], float]

    def __post_init__(self) -> None:
        complaint = _complaint_about_target(self.scale, self.bounds, self.base) or _complaint_about_settings(
            self.alpha, self.sigma, self.step_size, self.momentum
        )
        if complaint:
            raise ConfigError(f"hyperparameter {self.name!r} of group {self.group}: {complaint}")


@dataclass(frozen=True, slots=True)
class Target:
    """A number's name, and how to read and write it."""

    name: str
    group: int
    get: Callable[[], float]
    set: Callable[[float], None]


@dataclass(frozen=True, kw_only=True)
class HyperparameterLike(ABC):
    """What a scheduler takes as a hyperparameter, with the settings that all of them share."""

    base: float | None = None
    """The starting value; None is what the target has."""
    sigma: float = 0.1
    """Temperature of the losses' softmax (HDET, eqs. 4-5)."""
    step_size: float = 0.5
    """λ of HDET, eq. 8."""
    momentum: float = 0.9
    """β of HDET, eq. 7."""

    @abstractmethod
    def bind(self, optimizer: Optimizer, model: nn.Module | None) -> list[BoundHyperparameter]:
        """Find the targets, one for each number that moves by itself.

        Raises:
            ConfigError: There is no target, or a setting is outside its range.
        """

    def tie(
        self,
        target: Target,
        *,
        scale: Scale,
        bounds: tuple[float, float],
        alpha: float,
        is_regularizer: bool = False,
    ) -> BoundHyperparameter:
        """Tie these settings to a target, from its own value unless ``base`` is given."""
        return BoundHyperparameter(
            name=target.name,
            group=target.group,
            scale=scale,
            bounds=bounds,
            base=target.get() if self.base is None else float(self.base),
            alpha=alpha,
            sigma=self.sigma,
            step_size=self.step_size,
            momentum=self.momentum,
            is_regularizer=is_regularizer,
            set=target.set,
            get=target.get,
        )


def _complaint_about_target(scale: str, bounds: tuple[float, float], base: float) -> str:
    low, high = bounds
    if scale not in ("log", "linear"):
        return f"scale={scale!r} is unknown; use 'log' or 'linear'"
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        return f"bounds=({low}, {high}) are no interval; give two finite numbers, the lower one first"
    if scale == "log" and low <= 0:
        return (
            f"bounds=({low}, {high}) reach 0, which no log scale does; raise the lower one, or use 'linear'"
        )
    if not math.isfinite(base) or base == 0:
        return f"base={base} has no multiples to explore; start from a finite value other than 0"
    if not low <= base <= high:
        return f"base={base} lies outside its bounds ({low}, {high}); widen them, or start inside"
    return ""


def _complaint_about_settings(alpha: float, sigma: float, step_size: float, momentum: float) -> str:
    if not 0 <= alpha < 1:
        return f"alpha={alpha} must be in [0, 1); 1/9 is the paper's"
    if not 0 < sigma < math.inf:
        return f"sigma={sigma} must be finite and above 0; 0.1 is the paper's"
    if not 0 <= step_size < math.inf:
        return f"step_size={step_size} must be finite and at least 0; 0.5 is the paper's"
    if not 0 <= momentum < 1:
        return f"momentum={momentum} must be in [0, 1); 0.9 is the paper's"
    return ""
