"""What every workload can be told: one flat dictionary, as Ray Train's ``train_loop_config`` carries it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, Self

import torch
from torch import nn

from hdet_ray.config import Controller, Fixed, check_positive, resolve_controller
from hdet_ray.exceptions import ConfigError

_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "sgd": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, momentum=0.9),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """One training run."""

    preset: str = "tiny"
    optimizer: Literal["adamw", "sgd"] = "adamw"
    controller: str | Controller = "auto"
    """``auto``, ``paper``, ``fixed``, ``plain`` (one-cycle with nothing spread), or its settings."""
    max_lr: float
    total_steps: int = 1500
    batch_size: int = 16
    """Samples per rank and step."""
    probe_samples: int = 64
    """Samples per probe batch."""
    seed: int = 0
    """Of initial weights, data and assignments."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {}
    """Values that a preset's name stands for."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Settings from a flat dictionary: the preset's values, then those that are given.

        Raises:
            ConfigError: an unknown key, preset or value.
        """
        known = [f.name for f in fields(cls)]
        unknown = sorted(set(config) - set(known))
        if unknown:
            raise ConfigError(f"{unknown[0]!r} is no setting of this workload; it has {', '.join(known)}")
        preset = config.get("preset", "tiny")
        if preset not in cls.PRESETS:
            raise ConfigError(f"preset={preset!r} is unknown; use one of {', '.join(cls.PRESETS)}")
        return cls(**(cls.PRESETS[preset] | dict(config)))

    def __post_init__(self) -> None:
        check_positive("max_lr", self.max_lr)
        if self.optimizer not in _OPTIMIZERS:
            raise ConfigError(f"optimizer={self.optimizer!r} is unknown; use one of {', '.join(_OPTIMIZERS)}")
        for name in ("total_steps", "batch_size", "probe_samples"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")

    def build_controller(self) -> Controller:
        """The controller's settings."""
        return Fixed(alpha=0.0) if self.controller == "plain" else resolve_controller(self.controller)

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of a model's parameters, one group; a scheduler sets its rate."""
        return _OPTIMIZERS[self.optimizer](model.parameters(), lr=self.max_lr)
