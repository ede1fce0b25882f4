"""What a user can set, once: frozen dataclasses that validate themselves.

A setting that belongs to one controller stands in that controller's class and nowhere else.
Standard library only, so that `core` and a service's request models can share these classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from hdet_ray.exceptions import ConfigError

GradientSync = Literal["shared", "local"]

SYNC_EVERY_DEFAULT = 100
MIN_SCOUT_STEPS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed:
    """Fan-out and converge around a one-cycle base that nobody moves (HDET, eqs. 1-3).

    ``Fixed(alpha=0.0)`` with shared gradients is plain data parallelism with one-cycle: nothing is
    spread and nothing averaged. With local gradients it is local SGD.
    """

    alpha: float = 1 / 9
    """Half-width of the spread, relative to the base value, in ``[0, 1)``."""
    sync_every: int | None = None
    """Steps between converges (T); ``None`` means ``min(100, total_steps)``."""
    gradient_sync: GradientSync = "shared"
    """``shared``: gradients are all-reduced each step. ``local``: each replica follows its own."""

    def __post_init__(self) -> None:
        _check_spread(self.alpha, self.sync_every, self.gradient_sync)


@dataclass(frozen=True, slots=True, kw_only=True)
class Paper:
    """The paper's auto-LR controller (HDET, eqs. 4-9).

    Known limit: on short runs its decay ends 17-330 % behind the best one-cycle, also from the
    right rate. It is here to be faithful, not because it is recommended.
    """

    alpha: float = 1 / 9
    sync_every: int | None = None
    gradient_sync: GradientSync = "shared"
    sigma: float = 0.1
    """Temperature of the softmax over loss differences, in units of the loss (eq. 4)."""
    step_size: float = 0.5
    """lambda in eq. 8: how far the base value follows the velocity."""
    momentum: float = 0.9
    """beta in eq. 7."""
    warmup_steps: int | None = None
    """Steps of one-cycle before the controller acts (S_warm); ``None`` means ``pct_start * S``."""

    def __post_init__(self) -> None:
        _check_spread(self.alpha, self.sync_every, self.gradient_sync)
        check_follower(self.sigma, self.step_size, self.momentum)
        if self.warmup_steps is not None:
            _check_steps("warmup_steps", self.warmup_steps, minimum=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Auto:
    """Find ``max_lr`` inside the run with the replicas, then train with the user's one-cycle.

    The search costs at most ``max_scouts`` scouts and ``max_pairs`` pairs of rounds, and never more
    than ``max_search_ratio`` of the run: a run too short for it trains plain one-cycle.
    """

    alpha: float = 0.0
    """Spread kept during training, around the base that was found; 0 means plain data parallelism."""
    sync_every: int | None = None
    scout_steps: int = 20
    """Steps in a scout round (W), before the cap by ``max_search_ratio``."""
    pair_steps: int = 40
    """Steps in a pair round."""
    scout_samples: int = 256
    """Probe samples on which the candidates of a scout are compared."""
    pair_samples: int = 1024
    """Probe samples on which the candidates of a pair are compared; none of the scouts'."""
    scout_spacing: float = 1.5
    """Distance between neighbouring candidates of a scout, in log rate."""
    pair_spacing: float = 1.0
    """Distance between the two candidates of a pair, in log rate."""
    max_scouts: int = 5
    max_pairs: int = 3
    max_search_ratio: float = 0.25
    """Largest part of ``total_steps`` that the search may use in the worst case."""

    def __post_init__(self) -> None:
        _check_spread(self.alpha, self.sync_every, "shared")
        _check_steps("scout_steps", self.scout_steps, minimum=MIN_SCOUT_STEPS)
        _check_steps("pair_steps", self.pair_steps, minimum=MIN_SCOUT_STEPS)
        _check_steps("scout_samples", self.scout_samples, minimum=1)
        _check_steps("pair_samples", self.pair_samples, minimum=1)
        _check_steps("max_scouts", self.max_scouts, minimum=1)
        _check_steps("max_pairs", self.max_pairs, minimum=1)
        check_positive("scout_spacing", self.scout_spacing)
        check_positive("pair_spacing", self.pair_spacing)
        if not 0 < self.max_search_ratio <= 1:
            raise ConfigError(
                f"max_search_ratio={self.max_search_ratio} must lie in (0, 1]; 0.25 is the default"
            )


Controller = Auto | Paper | Fixed


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """When `judge` calls a replica unhealthy.

    All are scale-free: a loss's rise over the window is measured in robust standard deviations.
    """

    own_noise_z: float = 10.0
    """Rise of the last batch's loss over the window's start, in the replica's own step-to-step noise."""
    peer_z: float = 6.0
    """The same rise against the other replicas' (median and MAD); used from 4 replicas on."""
    explosion_z: float = 30.0
    """Rise in own noise from which a shared round is rolled back: by one replica, or by the median of all."""

    def __post_init__(self) -> None:
        for name in ("own_noise_z", "peer_z", "explosion_z"):
            check_positive(name, getattr(self, name))


def resolve_controller(controller: str | Controller) -> Controller:
    """The controller's settings for a name or an instance.

    Raises:
        ConfigError: the name is none of ``auto``, ``paper``, ``fixed``.
    """
    if isinstance(controller, Auto | Paper | Fixed):
        return controller
    classes: dict[str, type[Auto] | type[Paper] | type[Fixed]] = {
        "auto": Auto,
        "paper": Paper,
        "fixed": Fixed,
    }
    if controller not in classes:
        raise ConfigError(
            f"controller={controller!r} is unknown; use 'auto', 'paper', 'fixed', or an instance of "
            "Auto, Paper or Fixed with that mode's settings"
        )
    return classes[controller]()


def resolve_sync_every(sync_every: int | None, total_steps: int) -> int:
    """Steps between converges (T) for a run of ``total_steps``.

    Raises:
        ConfigError: longer than the run.
    """
    if sync_every is None:
        return min(SYNC_EVERY_DEFAULT, total_steps)
    if sync_every > total_steps:
        raise ConfigError(
            f"sync_every={sync_every} is longer than the run (total_steps={total_steps}), so replicas would "
            f"meet only at its end; use at most {total_steps} (100 to 1000 is usual)"
        )
    return sync_every


def check_positive(name: str, value: float) -> None:
    """Raise ConfigError unless ``value`` is a finite number above 0."""
    if not _is_number(value) or not math.isfinite(value) or value <= 0:
        raise ConfigError(f"{name}={value!r} must be a finite number above 0")


def check_follower(sigma: float, step_size: float, momentum: float) -> None:
    """Check the settings of eqs. 4-9.

    Raises:
        ConfigError: ``sigma`` not above 0, ``step_size`` negative, ``momentum`` outside ``[0, 1)``.
    """
    check_positive("sigma", sigma)
    if not _is_number(step_size) or not math.isfinite(step_size) or step_size < 0:
        raise ConfigError(
            f"step_size={step_size!r} must be a finite number of at least 0; 0.5 is the paper's"
        )
    if not _is_number(momentum) or not 0 <= momentum < 1:
        raise ConfigError(f"momentum={momentum!r} must lie in [0, 1); 0.9 is the paper's")


def check_alpha(alpha: float) -> None:
    """Raise ConfigError unless ``alpha`` lies in ``[0, 1)``."""
    if not _is_number(alpha) or not 0 <= alpha < 1:
        raise ConfigError(
            f"alpha={alpha!r} must lie in [0, 1): the lowest replica trains at 1 - alpha times the base "
            "value; 1/9 is the paper's"
        )


def _check_spread(alpha: float, sync_every: int | None, gradient_sync: str) -> None:
    check_alpha(alpha)
    if sync_every is not None:
        _check_steps("sync_every", sync_every, minimum=1)
    if gradient_sync not in ("shared", "local"):
        raise ConfigError(f"gradient_sync={gradient_sync!r} is unknown; use 'shared' or 'local'")


def _check_steps(name: str, value: int, *, minimum: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"{name}={value!r} must be an integer of at least {minimum}")
    if value < minimum:
        reason = " leaves no step to train between converges;" if name == "sync_every" else ":"
        raise ConfigError(f"{name}={value}{reason} use at least {minimum}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
