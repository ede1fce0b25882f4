"""Many small models in one process, trained side by side: parameters stacked as rows of one matrix.

The modules are the workloads' own, called through `torch.func`; only the optimizers are written anew,
because torch's take one rate for a whole tensor and here every row has its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.functional import cross_entropy

_EVALUATION_ROWS = 8
"""Models that are evaluated at once: thousands of samples each would not fit the caches otherwise."""


class StackedNetwork:
    """One module's computation for many sets of its parameters."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._shapes = {name: p.shape for name, p in module.named_parameters()}
        self._call = vmap(lambda parameters, inputs: functional_call(module, parameters, (inputs,)))

    def gradients(self, weights: Tensor, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Each row's gradient of its mean loss.

        Args:
            weights: ``(M, P)``, one model a row.
            inputs: ``(M, B, ...)``.
            targets: ``(M, B)``.

        Returns:
            Gradients ``(M, P)`` and the losses of the samples ``(M, B)``.
        """
        leaves = {name: view.detach().requires_grad_() for name, view in self._views(weights).items()}
        losses = self._sample_losses(leaves, inputs, targets)
        gradients = torch.autograd.grad(losses.mean(1).sum(), list(leaves.values()))
        return torch.cat([g.flatten(1) for g in gradients], dim=1), losses.detach()

    @torch.no_grad()
    def mean_losses(self, weights: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        """Mean loss ``(M,)`` of each row on the same samples ``(B, ...)``, in eval mode."""
        self._module.eval()
        means = [
            self._sample_losses(
                self._views(rows),
                inputs.expand(len(rows), *inputs.shape),
                targets.expand(len(rows), *targets.shape),
            ).mean(1)
            for rows in weights.split(_EVALUATION_ROWS)
        ]
        self._module.train()
        return torch.cat(means)

    def _sample_losses(self, parameters: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        logits = self._call(parameters, inputs)  # (M, B, C)
        flat = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        return flat.view(targets.shape)

    def _views(self, weights: Tensor) -> dict[str, Tensor]:
        sizes = [shape.numel() for shape in self._shapes.values()]
        pieces = weights.split(sizes, dim=1)
        return {
            name: piece.reshape(len(weights), *shape)
            for (name, shape), piece in zip(self._shapes.items(), pieces, strict=True)
        }


def flat_parameters(module: nn.Module) -> Tensor:
    """A module's parameters as one row ``(P,)``."""
    return torch.cat([p.detach().flatten() for p in module.parameters()])


class RowOptimizer(Protocol):
    """An optimizer of rows: its state rides along when rows are copied, averaged or put back."""

    def step(self, weights: Tensor, gradients: Tensor, rates: Tensor, momentums: Tensor) -> None:
        """Update ``(M, P)`` weights in place at rates ``(M, 1)`` and momentums ``(M, 1)``."""

    def rows(self, index: Tensor) -> Self:
        """A copy with the state of these rows."""

    def state(self) -> dict[str, Tensor]:
        """The state that an average of replicas averages, each ``(M, P)``."""


@dataclass(slots=True, kw_only=True)
class RowAdamW:
    """torch's `AdamW` with a rate and a first beta for each row; the steps are counted for each row too."""

    mean: Tensor
    square: Tensor
    steps: Tensor
    """Updates so far, ``(M, 1)``."""
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01

    @classmethod
    def untouched(cls, weights: Tensor) -> Self:
        """Before the first step."""
        return cls(
            mean=torch.zeros_like(weights),
            square=torch.zeros_like(weights),
            steps=torch.zeros_like(weights[:, :1]),
        )

    def step(self, weights: Tensor, gradients: Tensor, rates: Tensor, momentums: Tensor) -> None:
        self.steps += 1
        weights.mul_(1 - rates * self.weight_decay)
        self.mean.lerp_(gradients, 1 - momentums)
        self.square.mul_(self.beta2).addcmul_(gradients, gradients, value=1 - self.beta2)
        step_sizes = rates / (1 - momentums**self.steps)
        root = self.square.sqrt().div_((1 - self.beta2**self.steps).sqrt()).add_(self.eps)
        weights.sub_(root.reciprocal_().mul_(self.mean).mul_(step_sizes))

    def rows(self, index: Tensor) -> Self:
        return type(self)(mean=self.mean[index], square=self.square[index], steps=self.steps[index])

    def state(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "square": self.square}


@dataclass(slots=True, kw_only=True)
class RowSGD:
    """torch's `SGD` with a rate and a momentum for each row."""

    velocity: Tensor

    @classmethod
    def untouched(cls, weights: Tensor) -> Self:
        """Before the first step."""
        return cls(velocity=torch.zeros_like(weights))

    def step(self, weights: Tensor, gradients: Tensor, rates: Tensor, momentums: Tensor) -> None:
        self.velocity.mul_(momentums).add_(gradients)
        weights.addcmul_(self.velocity, rates, value=-1)

    def rows(self, index: Tensor) -> Self:
        return type(self)(velocity=self.velocity[index])

    def state(self) -> dict[str, Tensor]:
        return {"velocity": self.velocity}


ROW_OPTIMIZERS: dict[str, type[RowAdamW] | type[RowSGD]] = {"adamw": RowAdamW, "sgd": RowSGD}
"""By the name that a workload's settings use."""
