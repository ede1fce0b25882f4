"""Gradient flags: which bucket of this rank's own gradients was the first that is not finite.

One number a bucket, written on the gradients' device as they leave: nothing waits for it before the boundary.
Where a bucket is scaled anyway, the same pass over its memory looks for what is not finite.
"""

from __future__ import annotations

import torch
from torch import Tensor

_FIRST_ROOM = 256

_SCALED_IN_ONE_PASS = (torch.float32, torch.float16, torch.bfloat16)
"""Types that torch's kernel for loss scaling multiplies as `mul_` does, bit for bit, with a 32-bit factor."""


class GradientFlags:
    """A flag for each bucket since the last reading."""

    def __init__(self) -> None:
        self._sums: dict[tuple[torch.device, torch.dtype], Tensor] = {}  # each (buckets or more,)
        self._found: dict[torch.device, Tensor] = {}  # each (buckets or more,): 1 where something was found
        self._factors: dict[tuple[torch.device, float], Tensor] = {}
        self._num_buckets = 0

    def note(self, gradients: Tensor) -> None:
        """Remember a bucket, a flat tensor, before anything is added to it: one kernel."""
        # One NaN or infinity makes the sum one too. Narrow floats are summed in 32 bits, where finite ones
        # don't overflow.
        dtype = torch.float32 if gradients.dtype.itemsize < 4 else gradients.dtype
        kind = (gradients.device, dtype)
        sums = self._sums.get(kind)
        if sums is None or self._num_buckets >= len(sums):
            sums = self._sums[kind] = self._make_room(sums, gradients.device, dtype)
        torch.sum(gradients, 0, dtype=dtype, out=sums[self._num_buckets])
        self._num_buckets += 1

    def note_and_scale(self, gradients: Tensor, factor: float) -> None:
        """Remember a bucket and multiply it by ``factor``, where possible in one pass over its memory."""
        if gradients.dtype not in _SCALED_IN_ONE_PASS:
            self.note(gradients)
            gradients.mul_(factor)
            return
        device = gradients.device
        found = self._found.get(device)
        if found is None or self._num_buckets >= len(found):
            found = self._found[device] = self._make_room(found, device, torch.float32)
        factor_on_device = self._factors.get((device, factor))
        if factor_on_device is None:
            factor_on_device = torch.tensor(factor, dtype=torch.float32, device=device)
            self._factors[device, factor] = factor_on_device
        torch._amp_foreach_non_finite_check_and_unscale_(
            [gradients], found[self._num_buckets], factor_on_device
        )
        self._num_buckets += 1

    def first_nonfinite(self) -> int | None:
        """How many buckets were finite before the first that was not, and begin anew.

        One host-device sync for each device and dtype.

        Returns:
            The number since the last call, None if all were finite.
        """
        first: list[int] = []
        for sums in self._sums.values():
            first += _first_true(sums[: self._num_buckets].isfinite().logical_not_())
            sums.zero_()
        for found in self._found.values():
            first += _first_true(found[: self._num_buckets])
            found.zero_()
        self._num_buckets = 0
        return min(first, default=None)

    def _make_room(self, former: Tensor | None, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Room for twice as many buckets: rounds are equally long, so it grows in the first ones only."""
        room = torch.zeros(max(_FIRST_ROOM, 2 * (self._num_buckets + 1)), dtype=dtype, device=device)
        if former is not None:
            room[: len(former)].copy_(former)
        return room


def _first_true(flags: Tensor) -> list[int]:
    """The index of the first that is set, if any is."""
    first: list[int] = flags.nonzero().flatten()[:1].tolist()
    return first
