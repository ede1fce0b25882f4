"""Training loops that tests on real ranks share: small nets, data that is a function of (step, rank)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

BATCH_SIZE = 8
NUM_FEATURES = 6


def make_net(
    *, batch_norm: bool = False, dropout: float = 0.0, dtype: torch.dtype = torch.float64
) -> nn.Module:
    """A small regression net, the same weights on every rank."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(NUM_FEATURES, 16)]
    if batch_norm:
        layers.append(nn.BatchNorm1d(16))
    layers += [nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 1)]
    return nn.Sequential(*layers).to(dtype)


def batch(
    step: int, rank: int, size: int = BATCH_SIZE, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Inputs (size, features) and targets (size, 1): a function of step and rank alone."""
    generator = torch.Generator().manual_seed(1_000_003 * step + rank + 17)
    x = torch.randn(size, NUM_FEATURES, generator=generator, dtype=torch.float64)
    noise = torch.randn(size, 1, generator=generator, dtype=torch.float64)
    y = torch.sin(x[:, :1] * 2) + 0.5 * x[:, 1:2] * x[:, 2:3] + 0.1 * noise
    return x.to(dtype), y.to(dtype)


def probe_of(model: nn.Module, size: int = 64) -> Callable[[int], Tensor]:
    """A probe on batches that no rank trains on."""

    def probe(k: int) -> Tensor:
        x, y = batch(k, rank=10_000, size=size)
        return nn.functional.mse_loss(model(x), y)

    return probe


def make_optimizer(name: str, model: nn.Module, lr: float = 1e-2) -> torch.optim.Optimizer:
    """Two parameter groups: weights, and biases and norms."""
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=0.9)
    return torch.optim.AdamW(groups, lr=lr)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: Callable[[Tensor], Any],
    steps: range,
    rank: int,
    *,
    spoil: Callable[[int, Tensor], Tensor] | None = None,
) -> None:
    """The user's loop; ``spoil`` may change the loss of a step before it is differentiated."""
    model.train()
    for i in steps:
        x, y = batch(i, rank)
        loss = nn.functional.mse_loss(model(x), y)
        if spoil is not None:
            loss = spoil(i, loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step(loss)


def wrap(model: nn.Module) -> DistributedDataParallel:
    """The model under DDP, on the default group."""
    return DistributedDataParallel(model)


def fingerprint(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Copies of everything that training changes, in a fixed order."""
    tensors = [t.detach().clone() for t in model.state_dict().values()]
    for group in optimizer.param_groups:
        for p in group["params"]:
            state = optimizer.state.get(p, {})
            tensors += [v.detach().clone() for _, v in sorted(state.items()) if isinstance(v, Tensor)]
    return tensors


def are_bit_equal(a: list[Tensor], b: list[Tensor]) -> bool:
    """Equal to the last bit, NaN included."""
    return len(a) == len(b) and all(
        x.shape == y.shape and torch.equal(x.nan_to_num(nan=1e30), y.nan_to_num(nan=1e30))
        for x, y in zip(a, b, strict=True)
    )
