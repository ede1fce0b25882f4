"""Warm noisy start: what tells replicas apart that begin from one trained checkpoint (HDET, eq. 10)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hdet_ray.core.draws import words


@torch.no_grad()
def add_warm_noise(parameters: Sequence[Tensor], warm_noise: float, *, seed: int, replica: int) -> None:
    """theta_r = theta_0 + eps, eps Gaussian of standard deviation nu * ||theta_0|| / sqrt(d) (HDET, eq. 10).

    Args:
        parameters: theta_0, changed in place; d numbers in all.
        warm_noise: nu.
        seed: Seed of the run.
        replica: Each replica draws from its own stream; the ranks of one replica draw alike.
    """
    floating = [p for p in parameters if p.is_floating_point()]
    num_values = sum(p.numel() for p in floating)
    norm = math.sqrt(sum(float(p.detach().double().square().sum()) for p in floating))
    std = warm_noise * norm / math.sqrt(num_values)
    stream = words(seed, replica, "warm_noise")
    generator = torch.Generator().manual_seed(next(stream) >> 1)
    for parameter in floating:
        # Drawn on the host, so that the noise does not depend on the device.
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * std
        parameter.add_(noise.to(device=parameter.device, dtype=parameter.dtype))
