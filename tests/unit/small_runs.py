"""Small runs in one process that tests of the schedulers share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from hdet_ray import Fixed, HDETOneCycleLR

STEPS = 40
PLAIN = Fixed(alpha=0.0, sync_every=8)


def net() -> nn.Module:
    """A small regression net, always the same."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def adamw(model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    """AdamW with two groups: weights, and biases."""
    return torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.ndim > 1]},
            {"params": [p for p in model.parameters() if p.ndim < 2]},
        ],
        **{"lr": 0.05, **options},
    )


def ours(optimizer: torch.optim.Optimizer, **settings: Any) -> HDETOneCycleLR:
    """Our one-cycle, with nothing spread."""
    return HDETOneCycleLR(
        optimizer, **{"max_lr": 0.05, "total_steps": STEPS, "controller": PLAIN, **settings}
    )


def torchs(optimizer: torch.optim.Optimizer, **settings: Any) -> OneCycleLR:
    """torch's one-cycle of the same peak and length."""
    return OneCycleLR(optimizer, **{"max_lr": 0.05, "total_steps": STEPS, **settings})


def loss_of(model: nn.Module, step: int) -> Tensor:
    """The loss of a step's batch, a function of the step alone."""
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
    return (model(x) - x.sum(1, keepdim=True).sin()).square().mean()


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: Callable[[Tensor], Any],
    steps: range = range(STEPS),
) -> list[Tensor]:
    """The user's loop; the weights that it ends with."""
    for i in steps:
        loss = loss_of(model, i)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step(loss)
    return [p.detach().clone() for p in model.parameters()]


def are_equal(a: list[Tensor], b: list[Tensor]) -> bool:
    """Equal to the last bit."""
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def groups_of(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The parameter groups' numbers, tensors among them as numbers."""
    numbers = []
    for group in optimizer.param_groups:
        own = {name: value for name, value in group.items() if name != "params"}
        numbers.append({name: float(v) if isinstance(v, Tensor) else v for name, v in own.items()})
    return numbers
