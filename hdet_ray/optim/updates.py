"""Updates: whether the optimizer has stepped since the scheduler did.

A call of `step` without an update before it is a step that GradScaler skipped, or, if there are many,
a wrapper that steps the scheduler once per process and would use the schedule up too fast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from hdet_ray.exceptions import ConfigError

_MAX_SKIPS = 32
"""GradScaler starts from a scale of 2^16 and halves it: no healthy loop skips more than a few dozen."""
_MAX_SKIP_RATIO = 0.25


class UpdateCounter:
    """Counts optimizer steps against scheduler steps.

    Args:
        optimizer: Watched by hooks.
        grad_scaler: Where given, a missing update is a skipped one from the very first on. Without, the
            schedule moves as torch's does until the optimizer has stepped once.
        before_first: Called before every update; cheap but for an attempt's first.
    """

    def __init__(self, optimizer: Optimizer, grad_scaler: Any, before_first: Callable[..., None]) -> None:
        self._since_call = 0
        self._updates = 0
        self._skips = 0
        self._knows_skips = grad_scaler is not None
        # Kept out of compiled steps: what an attempt's first update brings about is no part of their graph.
        optimizer.register_step_pre_hook(torch.compiler.disable(before_first))  # type: ignore[no-untyped-call]
        optimizer.register_step_post_hook(self._count_update)

    def count_call(self) -> bool:
        """Count one call of the scheduler's `step`; True where the optimizer skipped its update.

        Raises:
            ConfigError: far more calls than updates.
        """
        if self._since_call:
            self._updates += 1
            self._since_call = 0
            return False
        if not self._updates and not self._knows_skips:
            return False
        self._skips += 1
        if self._skips > max(_MAX_SKIPS, _MAX_SKIP_RATIO * self._updates):
            raise ConfigError(
                f"scheduler.step() was called {self._skips} times without an optimizer step in between, next "
                f"to {self._updates} with one: the schedule would be used up too fast. Call it once per "
                "optimizer step; a wrapper that steps it once per process (Accelerate's prepare) must not "
                "get the scheduler"
            )
        return True

    def _count_update(self, optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        # GradScaler calls a fused optimizer for a skipped step too, and it skips inside. On an accelerator
        # that stays unseen and counts: looking would cost a sync with the device at each step.
        found_inf = getattr(optimizer, "found_inf", None)
        if isinstance(found_inf, Tensor) and found_inf.is_cpu and found_inf.item():
            return
        self._since_call += 1
