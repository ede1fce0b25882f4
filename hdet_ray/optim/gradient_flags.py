"""Gradient flags: which backward pass of this rank was the first with a gradient that is not finite.

One number a pass, written on the gradient's device before it is shared: nothing waits for it before the
boundary. One parameter stands for all. What is not finite in a backward pass makes everything that is
computed after it so too, and its gradient is the last.
"""

from __future__ import annotations

import torch
from torch import Tensor

_FIRST_ROOM = 256


class GradientFlags:
    """A flag for each backward pass since the last reading."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None  # (passes or more,)
        self._num_passes = 0

    @torch.no_grad()
    def note_gradient_of(self, parameter: Tensor) -> None:
        """Remember this rank's own gradient, before anything is added to it: one kernel."""
        gradient = parameter.grad
        if gradient is None:
            return
        if gradient.is_sparse:
            gradient = gradient._values()
        if self._sums is None or self._num_passes >= len(self._sums):
            self._sums = self._make_room(gradient)
        # One NaN or infinity makes the sum one too. Narrow floats are summed in 32 bits, where finite ones
        # don't overflow.
        dims = tuple(range(gradient.ndim))
        torch.sum(gradient, dims, dtype=self._sums.dtype, out=self._sums[self._num_passes])
        self._num_passes += 1

    def first_nonfinite(self) -> int | None:
        """How many passes were finite before the first that was not, and begin anew; one host-device sync.

        Returns:
            The number since the last call, None if all were finite.
        """
        if self._sums is None:
            return None
        noted = self._sums[: self._num_passes]
        first: list[int] = noted.isfinite().logical_not_().nonzero().flatten()[:1].tolist()
        self._num_passes = 0
        return first[0] if first else None

    def _make_room(self, gradient: Tensor) -> Tensor:
        """Room for twice as many passes: rounds are equally long, so it grows in the first ones only."""
        dtype = torch.float32 if gradient.dtype.itemsize < 4 else gradient.dtype
        size = max(_FIRST_ROOM, 2 * (self._num_passes + 1))
        room = torch.zeros(size, dtype=dtype, device=gradient.device)
        if self._sums is not None:
            room[: len(self._sums)].copy_(self._sums)
        return room
