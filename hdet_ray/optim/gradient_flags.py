"""Gradient flags: which bucket of this rank's own gradients was the first that is not finite.

One number a bucket, written on the gradients' device as they leave: nothing waits for it before the boundary.
"""

from __future__ import annotations

import torch
from torch import Tensor

_FIRST_ROOM = 256


class GradientFlags:
    """Sums of the buckets since the last reading."""

    def __init__(self) -> None:
        self._sums: dict[tuple[torch.device, torch.dtype], Tensor] = {}  # each (buckets or more,)
        self._num_buckets = 0

    def note(self, gradients: Tensor) -> None:
        """Remember a bucket, a flat tensor, before anything is added to it: one kernel."""
        # One NaN or infinity makes the sum one too. Narrow floats are summed in 32 bits, where finite ones
        # don't overflow.
        dtype = torch.float32 if gradients.dtype.itemsize < 4 else gradients.dtype
        kind = (gradients.device, dtype)
        sums = self._sums.get(kind)
        if sums is None or self._num_buckets >= len(sums):
            sums = self._make_room(kind)
        torch.sum(gradients, 0, dtype=dtype, out=sums[self._num_buckets])
        self._num_buckets += 1

    def first_nonfinite(self) -> int | None:
        """How many buckets were finite before the first that was not, and begin anew.

        One host-device sync for each device and dtype.

        Returns:
            The number since the last call, None if all were finite.
        """
        found: list[int] = []
        for sums in self._sums.values():
            is_bad = sums[: self._num_buckets].isfinite().logical_not_()
            found += is_bad.nonzero().flatten()[:1].tolist()
            sums.zero_()
        self._num_buckets = 0
        return min(found, default=None)

    def _make_room(self, kind: tuple[torch.device, torch.dtype]) -> Tensor:
        """Room for twice as many buckets: rounds are equally long, so it grows in the first ones only."""
        device, dtype = kind
        sums = torch.zeros(max(_FIRST_ROOM, 2 * (self._num_buckets + 1)), dtype=dtype, device=device)
        former = self._sums.get(kind)
        if former is not None:
            sums[: len(former)].copy_(former)
        self._sums[kind] = sums
        return sums
