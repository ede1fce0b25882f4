"""Numbers in an optimizer's parameter groups: the rate, weight decay, momentum, betas.

A capturable or compiled optimizer keeps some of them as tensors: those are written in place, so that a
captured step sees the change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from hdet_ray.exceptions import ConfigError
from hdet_ray.optim.bound import Target


def set_rate(group: dict[str, Any], value: float) -> None:
    """Set a parameter group's learning rate; a tensor is written in place."""
    _write(group, "lr", value)


def set_momentum(group: dict[str, Any], value: float) -> None:
    """Set what one-cycle calls momentum: the first beta where a group has betas, else its ``momentum``.

    Raises:
        ConfigError: The group has neither.
    """
    if "betas" in group:
        _write_beta(group, 0, value)
    elif "momentum" in group:
        _write(group, "momentum", value)
    else:
        raise ConfigError(
            f"the parameter group has neither 'betas' nor 'momentum' to set to {value}; "
            f"pass cycle_momentum=False"
        )


def separate_entries(optimizer: Optimizer) -> None:
    """Give each parameter group tensors of its own: torch hands a default's one tensor to all groups."""
    seen: set[int] = set()
    for group in optimizer.param_groups:
        for name, value in group.items():
            if name != "params":
                group[name] = _separate(value, seen)


def _separate(value: Any, seen: set[int]) -> Any:
    if isinstance(value, tuple):
        return tuple(_separate(item, seen) for item in value)
    if not isinstance(value, Tensor):
        return value
    own = value.clone() if id(value) in seen else value
    seen.add(id(own))
    return own


def group_indices(optimizer: Optimizer, groups: Sequence[int] | None, entry: str) -> list[int]:
    """The parameter groups meant, each of which must have the entry."""
    num_groups = len(optimizer.param_groups)
    chosen = list(range(num_groups)) if groups is None else list(groups)
    for index in chosen:
        if not 0 <= index < num_groups:
            raise ConfigError(f"parameter group {index} does not exist; use 0 … {num_groups - 1}")
        if entry not in optimizer.param_groups[index]:
            remedy = "explore 'beta1' instead" if "betas" in optimizer.defaults else "leave it out"
            raise ConfigError(
                f"{type(optimizer).__name__} has no {entry!r} in parameter group {index}; {remedy}"
            )
    return chosen


def entry_of(optimizer: Optimizer, index: int, entry: str) -> Target:
    """One entry of one parameter group."""
    # The group is looked up at each call: load_state_dict puts new dictionaries in place of the old.
    return Target(
        entry,
        index,
        lambda: float(optimizer.param_groups[index][entry]),
        lambda value: _write(optimizer.param_groups[index], entry, value),
    )


def beta_of(optimizer: Optimizer, index: int, beta: int) -> Target:
    """One beta (0 or 1) of one parameter group."""
    return Target(
        f"beta{beta + 1}",
        index,
        lambda: float(optimizer.param_groups[index]["betas"][beta]),
        lambda value: _write_beta(optimizer.param_groups[index], beta, value),
    )


def _write(group: dict[str, Any], entry: str, value: float) -> None:
    if isinstance(group[entry], Tensor):
        group[entry].fill_(value)
    else:
        group[entry] = value


def _write_beta(group: dict[str, Any], beta: int, value: float) -> None:
    betas = list(group["betas"])
    if isinstance(betas[beta], Tensor):
        betas[beta].fill_(value)
    else:
        betas[beta] = value
        group["betas"] = tuple(betas)
