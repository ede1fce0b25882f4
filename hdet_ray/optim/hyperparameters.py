"""Any scalar as a hyperparameter: what the replicas vary beside the rate, and how it is set.

A user names what to explore; bound to an optimizer and a model, each name becomes one number per target
with a starting value, bounds and a setter. The schedulers know only that form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.optim import Optimizer

from hdet_ray.exceptions import ConfigError
from hdet_ray.optim.bound import BoundHyperparameter, HyperparameterLike, Scale, Target
from hdet_ray.optim.group_entries import beta_of, entry_of, group_indices, set_momentum, set_rate

__all__ = [
    "AttentionTemperature",
    "Betas",
    "BoundHyperparameter",
    "Dropout",
    "Handle",
    "Hyperparameter",
    "HyperparameterLike",
    "LabelSmoothing",
    "Momentum",
    "WeightDecay",
    "resolve",
    "set_momentum",
    "set_rate",
]


def resolve(
    hyperparameters: Iterable[HyperparameterLike | str],
    optimizer: Optimizer,
    model: nn.Module | None,
    *,
    cycle_momentum: bool,
    has_probe: bool,
) -> list[BoundHyperparameter]:
    """Bind everything that a user gave, and check that it can be explored together.

    Args:
        hyperparameters: Hyperparameters, or the short names "weight_decay", "dropout", "momentum", "beta1",
            "beta2".
        optimizer: Whose parameter groups are meant.
        model: Whose dropout is meant.
        cycle_momentum: Whether the base schedule moves the momentum itself.
        has_probe: Whether there is a probe to judge regularizers by.

    Raises:
        ConfigError: An unknown name, a target that isn't there, a setting outside its range, a momentum that
            the base schedule moves, a regularizer without a probe, or the same target twice.
    """
    if isinstance(hyperparameters, str | HyperparameterLike):
        raise ConfigError(
            f"hyperparameters={hyperparameters!r} is one alone; pass a list: [{hyperparameters!r}]"
        )
    bound: list[BoundHyperparameter] = []
    for given in hyperparameters:
        bound += _from_name(given).bind(optimizer, model)
    seen: set[tuple[str, int]] = set()
    for one in bound:
        if one.name in _CYCLED and cycle_momentum:
            raise ConfigError(
                f"hyperparameter {one.name!r} is moved by one-cycle itself while cycle_momentum=True; "
                f"pass cycle_momentum=False to explore it"
            )
        if one.is_regularizer and not has_probe:
            raise ConfigError(
                f"hyperparameter {one.name!r} regularizes, so training loss would always ask for less of it; "
                f"pass probe=, a loss on validation data"
            )
        if (one.name, one.group) in seen:
            raise ConfigError(
                f"hyperparameter {one.name!r} of group {one.group} is given twice; leave one out"
            )
        seen.add((one.name, one.group))
    return bound


class Handle:
    """A number that the model or the loss reads and a scheduler writes.

    Read it as ``float(handle)`` or ``handle.value``, each time that it is used. A compiled function would
    take that for a constant and be compiled anew at each change: there, read ``handle.tensor``, a 0-d
    float32 tensor on the host that is written in place.

    Args:
        value: The starting value.
    """

    def __init__(self, value: float) -> None:
        self._value = float(value)
        self.tensor: Tensor = torch.tensor(self._value)

    @property
    def value(self) -> float:
        """The present value."""
        return self._value

    @value.setter
    def value(self, value: float) -> None:
        self._value = float(value)
        self.tensor.fill_(self._value)

    def __float__(self) -> float:
        return self._value

    def __repr__(self) -> str:
        return f"Handle({self._value})"


@dataclass(frozen=True)
class Hyperparameter(HyperparameterLike):
    """A scalar of the user's own; ``base`` must be given.

    Args:
        name: How reports and overrides call it; a Python identifier.
        setter: Called with the value to use from now on.
        bounds: Smallest and largest value.
        scale: "log" for what is tuned by factors, "linear" for shares.
        alpha: Half-width of the replicas' spread around the base, as a share of it.
        is_regularizer: The training loss can't judge it, so a probe on validation data has to.
        group: Tells several of one name apart.
    """

    name: str
    setter: Callable[[float], None]
    _: KW_ONLY
    bounds: tuple[float, float]
    scale: Scale = "log"
    alpha: float = 1 / 9
    is_regularizer: bool = False
    group: int = 0

    def bind(self, optimizer: Optimizer, model: nn.Module | None) -> list[BoundHyperparameter]:
        """Bind the setter; ``get`` returns what was set last, at first the base."""
        if not self.name.isidentifier() or self.name == "lr":
            raise ConfigError(
                f"hyperparameter name={self.name!r} must be an identifier such as 'temperature', and not "
                f"'lr', which the scheduler explores by itself"
            )
        if self.base is None:
            raise ConfigError(
                f"hyperparameter {self.name!r} has base=None; give the value that it starts from"
            )
        last = Handle(self.base)

        def put(value: float) -> None:
            self.setter(value)
            last.value = value

        target = Target(self.name, self.group, lambda: last.value, put)
        return [
            self.tie(
                target,
                scale=self.scale,
                bounds=self.bounds,
                alpha=self.alpha,
                is_regularizer=self.is_regularizer,
            )
        ]


@dataclass(frozen=True, kw_only=True)
class WeightDecay(HyperparameterLike):
    """The optimizer's weight decay, a number for each parameter group.

    Args:
        groups: Indices of parameter groups; None is all whose decay is not 0 (biases and norms often lie in
            a group without, and stay so).
        bounds: Smallest and largest value.
        alpha: Half-width of the replicas' spread around the base, as a share of it.
    """

    groups: Sequence[int] | None = None
    bounds: tuple[float, float] = (1e-6, 1.0)
    alpha: float = 1 / 9

    def bind(self, optimizer: Optimizer, model: nn.Module | None) -> list[BoundHyperparameter]:
        """One per parameter group."""
        groups = group_indices(optimizer, self.groups, "weight_decay")
        if self.groups is None:
            groups = [index for index in groups if optimizer.param_groups[index]["weight_decay"] != 0]
        if not groups:
            raise ConfigError(
                "weight_decay is 0 in every parameter group, and 0 has no multiples to explore; create the "
                "optimizer with weight_decay > 0, or name the groups: WeightDecay(groups=[0], base=0.01)"
            )
        return [
            self.tie(
                entry_of(optimizer, index, "weight_decay"),
                scale="log",
                bounds=self.bounds,
                alpha=self.alpha,
                is_regularizer=True,
            )
            for index in groups
        ]


@dataclass(frozen=True, kw_only=True)
class Momentum(HyperparameterLike):
    """The ``momentum`` of SGD and its kin, a number for each parameter group; Adam's is ``Betas(index=0)``.

    Args:
        groups: Indices of parameter groups; None is all.
        bounds: Smallest and largest value.
        alpha: Half-width of the replicas' spread; small, because multiples of a number near 1 soon pass it.
    """

    groups: Sequence[int] | None = None
    bounds: tuple[float, float] = (0.5, 0.99)
    alpha: float = 0.05

    def bind(self, optimizer: Optimizer, model: nn.Module | None) -> list[BoundHyperparameter]:
        """One per parameter group."""
        return [
            self.tie(
                entry_of(optimizer, index, "momentum"), scale="linear", bounds=self.bounds, alpha=self.alpha
            )
            for index in group_indices(optimizer, self.groups, "momentum")
        ]


@dataclass(frozen=True)
class Betas(HyperparameterLike):
    """One of Adam's betas, a number for each parameter group, by the name "beta1" or "beta2".

    Args:
        index: 0 for the first moment's, 1 for the second's.
        groups: Indices of parameter groups; None is all.
        bounds: Smallest and largest value; None is (0.5, 0.99) for the first, (0.9, 0.9999) for the second.
        alpha: Half-width of the replicas' spread; None is 0.05 for the first, 0.0005 for the second.
    """

    index: Literal[0, 1] = 0
    _: KW_ONLY
    groups: Sequence[int] | None = None
    bounds: tuple[float, float] | None = None
    alpha: float | None = None

    def bind(self, optimizer: Optimizer, model: nn.Module | None) -> list[BoundHyperparameter]:
        """One per parameter group."""
        if self.index not in (0, 1):
            raise ConfigError(f"Betas(index={self.index}) names no beta; use 0 or 1")
        usual_bounds, usual_alpha = (((0.5, 0.99), 0.05), ((0.9, 0.9999), 0.0005))[self.index]
        return [
            self.tie(
                beta_of(optimizer, index, self.index),
                scale="linear",
                bounds=self.bounds or usual_bounds,
                alpha=usual_alpha if self.alpha is None else self.alpha,
            )
            for index in group_indices(optimizer, self.groups, "betas")
        ]


@dataclass(frozen=True)
class Dropout(HyperparameterLike):
    """The rate of every ``nn.Dropout`` (of any dimension) in a module, as one number.

    The number is the largest rate; smaller ones keep their ratio to it, and those at 0 stay there. A compiled
    module is compiled anew when it changes.

    Args:
        module: Where to look; None is the whole model.
        bounds: Smallest and largest value.
        alpha: Half-width of the replicas' spread around the base, as a share of it.
    """

    module: nn.Module | None = None
    _: KW_ONLY
    bounds: tuple[float, float] = (0.0, 0.9)
    alpha: float = 1 / 9

    def bind(self, optimizer: Optimizer, model: nn.Module | None) -> list[BoundHyperparameter]:
        """One for the whole module."""
        module = self.module if self.module is not None else model
        if module is None:
            raise ConfigError(
                "there is no model to look for dropout in; pass model= to the scheduler, or Dropout(module=…)"
            )
        found = [layer for layer in module.modules() if isinstance(layer, _DropoutNd) and layer.p > 0]
        if not found:
            raise ConfigError(
                f"{type(module).__name__} has no nn.Dropout with a rate above 0 to explore; "
                f"add one, or leave Dropout out"
            )
        largest = max(layer.p for layer in found)
        shares = [(layer, layer.p / largest) for layer in found]

        def put(value: float) -> None:
            for layer, share in shares:
                layer.p = value * share

        target = Target("dropout", 0, lambda: max(layer.p for layer in found), put)
        return [self.tie(target, scale="linear", bounds=self.bounds, alpha=self.alpha, is_regularizer=True)]


@dataclass(frozen=True)
class AttentionTemperature(HyperparameterLike):
    """What the model divides attention's logits by, through a handle that it reads.

    Args:
        handle: The handle.
        bounds: Smallest and largest value.
        alpha: Half-width of the replicas' spread around the base, as a share of it.
    """

    handle: Handle
    _: KW_ONLY
    bounds: tuple[float, float] = (0.1, 10.0)
    alpha: float = 1 / 9

    def bind(self, optimizer: Optimizer, model: nn.Module | None) -> list[BoundHyperparameter]:
        """One for the handle."""
        target = _of_handle("attention_temperature", self.handle)
        return [self.tie(target, scale="log", bounds=self.bounds, alpha=self.alpha)]


@dataclass(frozen=True)
class LabelSmoothing(HyperparameterLike):
    """The loss's label smoothing, through a handle that it reads; the probe's loss should be without it.

    Args:
        handle: The handle.
        bounds: Smallest and largest value.
        alpha: Half-width of the replicas' spread around the base, as a share of it.
    """

    handle: Handle
    _: KW_ONLY
    bounds: tuple[float, float] = (0.0, 0.5)
    alpha: float = 1 / 9

    def bind(self, optimizer: Optimizer, model: nn.Module | None) -> list[BoundHyperparameter]:
        """One for the handle."""
        target = _of_handle("label_smoothing", self.handle)
        return [self.tie(target, scale="linear", bounds=self.bounds, alpha=self.alpha, is_regularizer=True)]


_CYCLED = ("momentum", "beta1")

_SHORT_NAMES: dict[str, Callable[[], HyperparameterLike]] = {
    "weight_decay": WeightDecay,
    "dropout": Dropout,
    "momentum": Momentum,
    "beta1": lambda: Betas(index=0),
    "beta2": lambda: Betas(index=1),
}


def _from_name(given: HyperparameterLike | str) -> HyperparameterLike:
    if isinstance(given, HyperparameterLike):
        return given
    if isinstance(given, str) and given in _SHORT_NAMES:
        return _SHORT_NAMES[given]()
    known = ", ".join(repr(name) for name in _SHORT_NAMES)
    raise ConfigError(
        f"hyperparameter {given!r} is unknown; use one of {known}, or a Hyperparameter with a setter of "
        f"your own (the rate needs no entry)"
    )


def _of_handle(name: str, handle: Handle) -> Target:
    def put(value: float) -> None:
        handle.value = value

    return Target(name, 0, lambda: handle.value, put)
