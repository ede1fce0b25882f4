"""The base schedule: one-cycle, equal to torch's `OneCycleLR` in every bit, as a function of the position.

torch's scheduler counts steps and writes into an optimizer. Here the same numbers come from a value that
any rank, a controller without torch, or a replay can ask for any position, and whose shape can be laid
over fewer steps: those that a search has left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeGuard

from hdet_ray.exceptions import ConfigError

AnnealStrategy = Literal["cos", "linear"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OneCycle:
    """torch's one-cycle shape with all of its options, validated (Smith and Topin, arXiv 1708.07120).

    Two phases: ``initial_lr -> max_lr -> min_lr``, momentum the other way round. With ``three_phase``:
    ``initial_lr -> max_lr -> initial_lr -> min_lr``. Here ``initial_lr = max_lr / div_factor`` and
    ``min_lr = initial_lr / final_div_factor``.

    Raises:
        ConfigError: a value outside its bounds, or a shape for which torch would divide by zero at some
            step of ``0 .. total_steps``.
    """

    total_steps: int
    """Steps of the whole run (S)."""
    max_lr: tuple[float, ...]
    """Peak rate of each parameter group."""
    pct_start: float = 0.3
    """Share of the steps in which the rate rises, in ``[0, 1]``."""
    anneal_strategy: AnnealStrategy = "cos"
    cycle_momentum: bool = True
    """Momentum (or Adam's first beta) falls while the rate rises."""
    base_momentum: tuple[float, ...] = ()
    """Momentum of each group where the rate is highest; empty without ``cycle_momentum``."""
    max_momentum: tuple[float, ...] = ()
    """Momentum of each group at the start and the end; empty without ``cycle_momentum``."""
    div_factor: float = 25.0
    final_div_factor: float = 1e4
    three_phase: bool = False

    def __post_init__(self) -> None:
        _check_positive_int("total_steps", self.total_steps)
        _check_shape(self.pct_start, self.anneal_strategy)
        _check_rates(self.max_lr, self.div_factor, self.final_div_factor)
        momentums = (self.base_momentum, self.max_momentum) if self.cycle_momentum else ((), ())
        if self.cycle_momentum:
            _check_momentum("base_momentum", self.base_momentum, len(self.max_lr))
            _check_momentum("max_momentum", self.max_momentum, len(self.max_lr))
        # Integers become floats, so that a shape read back from JSON equals the one that was written.
        object.__setattr__(self, "max_lr", tuple(float(rate) for rate in self.max_lr))
        object.__setattr__(self, "base_momentum", tuple(float(value) for value in momentums[0]))
        object.__setattr__(self, "max_momentum", tuple(float(value) for value in momentums[1]))
        object.__setattr__(self, "div_factor", float(self.div_factor))
        object.__setattr__(self, "final_div_factor", float(self.final_div_factor))
        self._check_phases_have_length()

    def lr_at(self, group: int, position: int, total_steps: int | None = None) -> float:
        """A group's rate at a position of the shape.

        Args:
            group: Index of the parameter group.
            position: Step within the shape, ``0 <= position <= total_steps``. Like torch's scheduler after
                its last step, the position ``total_steps`` lies one step beyond the shape's end.
            total_steps: Steps that the whole shape is laid over; those of the run unless given.
        """
        phase, fraction = self._locate(position, self.total_steps if total_steps is None else total_steps)
        peak = self.max_lr[group]
        initial = peak / self.div_factor
        floor = initial / self.final_div_factor
        rates = (initial, peak, initial, floor) if self.three_phase else (initial, peak, floor)
        return self._anneal(rates[phase], rates[phase + 1], fraction)

    def momentum_at(self, group: int, position: int, total_steps: int | None = None) -> float:
        """A group's momentum (or first beta) at a position of the shape; arguments as in `lr_at`.

        Only where ``cycle_momentum`` is set: else the optimizer's own momentum stays as it is.
        """
        phase, fraction = self._locate(position, self.total_steps if total_steps is None else total_steps)
        high, low = self.max_momentum[group], self.base_momentum[group]
        momentums = (high, low, high, high)
        return self._anneal(momentums[phase], momentums[phase + 1], fraction)

    def lr_columns(self, first: int, count: int, total_steps: int) -> list[list[float]]:
        """Each group's rate at ``count`` positions from ``first`` on: `lr_at`, many times faster a value."""
        peaks = self.max_lr
        initial = [peak / self.div_factor for peak in peaks]
        floors = [rate / self.final_div_factor for rate in initial]
        corners = [initial, peaks, initial, floors] if self.three_phase else [initial, peaks, floors]
        return self._columns(corners, first, count, total_steps)

    def momentum_columns(self, first: int, count: int, total_steps: int) -> list[list[float]]:
        """Each group's momentum at ``count`` positions from ``first`` on: `momentum_at`, faster."""
        high, low = self.max_momentum, self.base_momentum
        return self._columns([high, low, high, high], first, count, total_steps)

    def initial_lr(self, group: int) -> float:
        """Where a group's rate starts; `lr_at` there equals it up to its formula's rounding, as in torch."""
        return self.max_lr[group] / self.div_factor

    def min_lr(self, group: int) -> float:
        """A group's rate at the last step: the floor of the whole schedule."""
        return self.max_lr[group] / self.div_factor / self.final_div_factor

    def _locate(self, position: int, total_steps: int) -> tuple[int, float]:
        """The phase that a position falls into, and how far it is through it."""
        start = 0.0
        ends = self._phase_ends(total_steps)
        last = len(ends) - 1
        for phase, end in enumerate(ends):
            if position <= end or phase == last:
                break
            start = end
        # A short stretch can leave a phase without length: it is over as soon as it begins.
        fraction = (position - start) / (end - start) if end != start else 1.0
        return phase, fraction

    def _columns(
        self, corners: Sequence[Sequence[float]], first: int, count: int, total_steps: int
    ) -> list[list[float]]:
        """Anneal between the corners of the phases, one column of positions per group."""
        columns: list[list[float]] = [[] for _ in corners[0]]
        ends = self._phase_ends(total_steps)
        begin, stop, start = first, first + count, 0.0
        for phase, end in enumerate(ends):
            limit = stop if phase == len(ends) - 1 else min(math.floor(end) + 1, stop)
            positions, begin = range(begin, limit), max(begin, limit)
            length = end - start
            # A short stretch can leave a phase without length: it is over as soon as it begins.
            fractions = [(position - start) / length if length else 1.0 for position in positions]
            start = end
            edges = zip(columns, corners[phase], corners[phase + 1], strict=True)
            if self.anneal_strategy == "cos":
                factors = [math.cos(math.pi * fraction) + 1 for fraction in fractions]
                for column, high, low in edges:
                    half = (high - low) / 2.0
                    column += [low + half * factor for factor in factors]
            else:
                for column, low, high in edges:
                    rise = high - low
                    column += [rise * fraction + low for fraction in fractions]
        return columns

    def _phase_ends(self, total_steps: int) -> tuple[float, ...]:
        """The last step of each phase; fractions of a step stay, as in torch."""
        rise_end = self.pct_start * total_steps - 1
        if self.three_phase:
            return (rise_end, 2 * self.pct_start * total_steps - 2, float(total_steps - 1))
        return (rise_end, float(total_steps - 1))

    def _anneal(self, start: float, end: float, fraction: float) -> float:
        # In torch's order of operations: another order differs in the last bit.
        if self.anneal_strategy == "cos":
            return end + (start - end) / 2.0 * (math.cos(math.pi * fraction) + 1)
        return (end - start) * fraction + start

    def _check_phases_have_length(self) -> None:
        ends = self._phase_ends(self.total_steps)
        # Position 0 falls into the first phase only if that ends at or after 0; position S into the last.
        if ends[0] != 0.0 and ends[-2] != ends[-1]:
            return
        which = "first" if ends[0] == 0.0 else "last"
        forbidden = "(total_steps + 1) / 2" if self.three_phase else "total_steps"
        raise ConfigError(
            f"pct_start={self.pct_start} of total_steps={self.total_steps} leaves the {which} phase without "
            f"length (torch's OneCycleLR divides by zero there); choose them so that pct_start * total_steps "
            f"is neither 1 nor {forbidden}"
        )


def resolve_total_steps(total_steps: int | None, epochs: int | None, steps_per_epoch: int | None) -> int:
    """Steps of the whole run from torch's two ways to say them; ``total_steps`` goes first.

    Raises:
        ConfigError: neither ``total_steps`` nor both others are given, or one is not a positive integer.
    """
    if total_steps is not None:
        _check_positive_int("total_steps", total_steps)
        return total_steps
    if epochs is None or steps_per_epoch is None:
        raise ConfigError(
            f"total_steps=None with epochs={epochs} and steps_per_epoch={steps_per_epoch} does not say how "
            f"long the run is; give total_steps, or both epochs and steps_per_epoch"
        )
    _check_positive_int("epochs", epochs)
    _check_positive_int("steps_per_epoch", steps_per_epoch)
    return epochs * steps_per_epoch


def per_group(name: str, value: float | Sequence[float], num_groups: int) -> tuple[float, ...]:
    """One value for each parameter group, from one for all or a list of them.

    Raises:
        ConfigError: a list of another length than the optimizer has parameter groups.
    """
    if not isinstance(value, Sequence):
        return (value,) * num_groups
    if len(value) != num_groups:
        raise ConfigError(
            f"{name} has {len(value)} values for {num_groups} parameter groups; "
            f"give one number, or one per group"
        )
    return tuple(value)


def _check_positive_int(name: str, value: object) -> None:
    if not isinstance(value, int) or value <= 0:
        raise ConfigError(f"{name}={value!r} must be a positive integer (at least 1)")


def _check_shape(pct_start: object, anneal_strategy: object) -> None:
    if not isinstance(pct_start, float) or not 0 <= pct_start <= 1:
        raise ConfigError(f"pct_start={pct_start!r} must be a float in [0, 1]; torch's default is 0.3")
    if anneal_strategy not in ("cos", "linear"):
        raise ConfigError(f"anneal_strategy={anneal_strategy!r} is unknown; use 'cos' or 'linear'")


def _check_rates(max_lr: tuple[float, ...], div_factor: float, final_div_factor: float) -> None:
    if not max_lr:
        raise ConfigError("max_lr=() has no parameter group; give one rate per group")
    for name, factor, usual in (
        ("div_factor", div_factor, "25"),
        ("final_div_factor", final_div_factor, "1e4"),
    ):
        if not _is_positive(factor):
            raise ConfigError(
                f"{name}={factor!r} must be a finite number above 0; torch's default is {usual}"
            )
    for group, rate in enumerate(max_lr):
        if not _is_positive(rate):
            raise ConfigError(f"max_lr={rate!r} of group {group} must be a finite number above 0")
        initial = rate / div_factor
        if not (math.isfinite(initial) and math.isfinite(initial / final_div_factor)):
            raise ConfigError(
                f"max_lr={rate!r} of group {group} with div_factor={div_factor!r} and "
                f"final_div_factor={final_div_factor!r} starts or ends at a rate that is not finite; "
                f"use factors above 1"
            )


def _check_momentum(name: str, values: tuple[float, ...], num_groups: int) -> None:
    if len(values) != num_groups:
        raise ConfigError(
            f"{name} has {len(values)} values for {num_groups} parameter groups; give one per group, "
            f"or set cycle_momentum=False"
        )
    for group, value in enumerate(values):
        if not _is_number(value) or not 0 <= value < 1:
            raise ConfigError(f"{name}={value!r} of group {group} must lie in [0, 1); 0.85 to 0.95 is usual")


def _is_positive(value: object) -> bool:
    return _is_number(value) and 0 < value < math.inf


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
