"""The table: a round's rates and momenta, computed ahead in chunks and only written in `step`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from hdet_ray.core.plan import Plan, momentum_columns, rate_columns
from hdet_ray.optim.hyperparameters import set_rate

CHUNK_STEPS = 64
"""Steps computed at once: in columns that costs a tenth of what it does step by step."""


class RateTable:
    """One replica's values in the round that is going on."""

    def __init__(self, optimizer: Optimizer, replica: int) -> None:
        self._optimizer = optimizer
        self._replica = replica
        self._plan: Plan | None = None
        self._first = 0
        self._rates: list[tuple[float, ...]] = []
        self._momenta: list[tuple[Any, ...]] = []
        self._momentum_name = ""
        self._has_tensor_rates = False

    def enter(self, plan: Plan) -> None:
        """Take up a plan, at its first step."""
        self._plan = plan
        self._fill(plan, 0)

    def set(self, moved: int) -> Sequence[float]:
        """Write the values of the round's step ``moved``; returns the rates."""
        row = moved - self._first
        if row >= len(self._rates) or row < 0:
            if self._plan is None:
                raise TypeError("a table is entered before it is read")
            self._fill(self._plan, moved)
            row = 0
        rates = self._rates[row]
        groups = self._optimizer.param_groups
        if self._has_tensor_rates:
            for group, rate in zip(groups, rates, strict=True):
                set_rate(group, rate)
        else:
            for group, rate in zip(groups, rates):  # noqa: B905 - `strict` costs a fifth of this loop
                group["lr"] = rate
        if self._momentum_name:
            name = self._momentum_name
            for group, momentum in zip(groups, self._momenta[row]):  # noqa: B905
                group[name] = momentum
        return rates

    def _fill(self, plan: Plan, first: int) -> None:
        groups = self._optimizer.param_groups
        count = min(CHUNK_STEPS, plan.num_steps + 1 - first)
        self._first = first
        self._has_tensor_rates = any(isinstance(group["lr"], Tensor) for group in groups)
        # From one column a group to one row a step.
        self._rates = list(zip(*rate_columns(plan, self._replica, plan.step + first, count), strict=True))
        momenta: Sequence[Sequence[Any]] = momentum_columns(plan, plan.step + first, count)
        self._momentum_name = _momentum_name(self._optimizer) if momenta else ""
        if self._momentum_name == "betas":
            momenta = [
                list(zip(column, *map(repeat, group["betas"][1:])))  # noqa: B905 - endless repeats
                for column, group in zip(momenta, groups, strict=True)
            ]
        self._momenta = list(zip(*momenta, strict=True))


def has_momentum(optimizer: Optimizer) -> bool:
    """There is a momentum, or a first beta, that one-cycle can move."""
    return bool(_momentum_name(optimizer))


def _momentum_name(optimizer: Optimizer) -> str:
    return next((name for name in ("betas", "momentum") if name in optimizer.defaults), "")
