"""The window: a round's losses, kept on their device until the boundary.

One 0-d slot per step, made once per round length: recording is one small copy, with no host-device sync
and no growth. Copies, because a compiled step may hand out the same tensor each time.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from hdet_ray.exceptions import ConfigError

_LOWER_QUARTILE = 0.3186
"""Of the absolute value of a standard normal number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowLosses:
    """What a rank reports of its losses."""

    mean: float
    tail: float
    """Mean over the last quarter."""
    start: float
    """Median over the first quarter."""
    last: float
    noise: float
    """Robust standard deviation from batch to batch, blind to a trend."""
    first: float
    """The first batch's loss: the untrained weights', in the first round."""


class LossWindow:
    """Losses of the steps of one round."""

    def __init__(self) -> None:
        self._losses: Tensor | None = None  # (steps,)
        self._slots: tuple[Tensor, ...] = ()
        self._num_steps = 0
        self._recorded = 0

    def reset(self, num_steps: int) -> None:
        """Begin a round of this many steps."""
        self._num_steps = num_steps
        self._recorded = 0

    def record(self, i: int, loss: Tensor | float) -> None:
        """Keep the loss of step ``i`` of the round.

        Raises:
            ConfigError: a loss of more than one number.
        """
        slots = self._slots
        if i < len(slots) and isinstance(loss, Tensor):
            try:
                slots[i].copy_(loss.detach())
            except RuntimeError:
                self._record_slowly(i, loss)
        else:
            self._record_slowly(i, loss)
        self._recorded += 1

    def values(self, num_steps: int) -> list[float] | None:
        """The round's losses on the host, or ``None`` where not every step had one."""
        if self._losses is None or self._recorded < num_steps or num_steps == 0:
            return None
        return [float(x) for x in self._losses[:num_steps].tolist()]

    def _record_slowly(self, i: int, loss: Tensor | float) -> None:
        if isinstance(loss, Tensor):
            if loss.numel() != 1:
                raise ConfigError(
                    f"step(loss) got a tensor of shape {list(loss.shape)}; pass the batch's mean loss, one "
                    "number"
                )
            self._make_room(loss.device, torch.promote_types(loss.dtype, torch.float32))
            self._slots[i].copy_(loss.detach().reshape(()))
        elif isinstance(loss, int | float):
            self._make_room(torch.device("cpu"), torch.float64)
            self._slots[i].fill_(float(loss))
        else:
            raise ConfigError(
                f"step(loss) got {type(loss).__name__}; pass the batch's mean loss, a 0-d tensor or a number"
            )

    def _make_room(self, device: torch.device, dtype: torch.dtype) -> None:
        if len(self._slots) < self._num_steps or self._losses is None:
            old = self._losses
            self._losses = torch.empty(self._num_steps, dtype=dtype, device=device)
            if old is not None:
                self._losses[: len(old)].copy_(old)
            self._slots = tuple(self._losses.unbind())


def summarize(losses: Sequence[float]) -> WindowLosses:
    """Reduce a round's losses to what is reported."""
    quarter = max(len(losses) // 4, 1)
    return WindowLosses(
        mean=_mean(losses),
        tail=_mean(losses[-quarter:]),
        start=_median(losses[:quarter]),
        last=losses[-1],
        noise=_noise(losses),
        first=losses[0],
    )


def _mean(losses: Sequence[float]) -> float:
    return sum(losses) / len(losses) if all(map(math.isfinite, losses)) else math.nan


def _median(losses: Sequence[float]) -> float:
    finite = [x for x in losses if math.isfinite(x)]
    return statistics.median(finite) if finite else math.nan


def _noise(losses: Sequence[float]) -> float:
    """From differences of neighbours, so that learning itself does not count as noise.

    Their lower quartile, so that an explosion over half of the window does not count as noise either.
    """
    steps = sorted(abs(b - a) for a, b in pairwise(losses) if math.isfinite(b - a))
    return steps[len(steps) // 4] / (_LOWER_QUARTILE * math.sqrt(2)) if steps else 0.0
