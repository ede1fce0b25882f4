"""How far replicas went apart, measured where they meet: for people, no decision reads it.

A replica's parameters before an average are kept in memory that is there anyway, the average runs as if
nobody looked, and what is left between the two is the distance. The result is one number a rank.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


@torch.no_grad()
def relative_distance(before: Sequence[Tensor], mean: Sequence[Tensor]) -> float:
    """``|before - mean| / |mean|`` in the Euclidean norm, over all tensors as one vector.

    One host-device sync a device.

    Args:
        before: Overwritten with the differences.
        mean: Of the same shapes, dtypes and devices, in the same order; left alone.

    Returns:
        NaN where ``before`` is not finite, or the mean is zero.
    """
    pairs = [(b, m.detach()) for b, m in zip(before, mean, strict=True) if m.numel()]
    if not pairs:
        return math.nan
    differences, means = (list(side) for side in zip(*pairs, strict=True))
    torch._foreach_sub_(differences, means)
    distance_sq, size_sq = (sum(column) for column in zip(*_squares(differences, means), strict=True))
    return math.sqrt(distance_sq / size_sq) if size_sq > 0 and math.isfinite(distance_sq) else math.nan


def largest(ratios: Iterable[float], weights: Sequence[float]) -> float | None:
    """The largest distance among the replicas that were averaged; None where none has one."""
    known = [ratio for ratio, weight in zip(ratios, weights, strict=True) if weight > 0]
    return max((ratio for ratio in known if math.isfinite(ratio)), default=None)


def _squares(differences: Sequence[Tensor], means: Sequence[Tensor]) -> list[list[float]]:
    """For each device, the squared norms of both, read from it at once."""
    kinds: dict[tuple[torch.device, torch.dtype], list[tuple[Tensor, Tensor]]] = defaultdict(list)
    for difference, mean in zip(differences, means, strict=True):
        kinds[mean.device, mean.dtype].append((difference, mean))
    rows: dict[torch.device, list[Tensor]] = defaultdict(list)
    for (device, _), pairs in kinds.items():
        sides = zip(*pairs, strict=True)
        rows[device].append(torch.stack([_square(list(side)) for side in sides]))  # (2,)
    return [torch.stack(on_device).sum(0).tolist() for on_device in rows.values()]


def _square(tensors: list[Tensor]) -> Tensor:
    real = [torch.view_as_real(t) if t.is_complex() else t for t in tensors]
    # 16-bit floats have too small a range for a sum of squares.
    dtype = torch.float32 if real[0].dtype.itemsize < 4 else None
    return torch.stack(torch._foreach_norm(real, 2, dtype)).double().square().sum()
