"""Fan-out: how far from the base value each replica trains (HDET, eq. 1)."""

from __future__ import annotations

from hdet_ray.config import check_alpha
from hdet_ray.core.draws import permutation, words
from hdet_ray.exceptions import ConfigError


def spread_multipliers(num_replicas: int, alpha: float) -> tuple[float, ...]:
    """Multipliers of the base value, lowest first (HDET, eq. 1).

    rho_r = 1 + alpha * (r - (N - 1)/2) / max((N - 1)/2, 0.5)

    Returns:
        ``num_replicas`` values in ``[1 - alpha, 1 + alpha]``, symmetric about 1.

    Raises:
        ConfigError: ``num_replicas < 1``, or ``alpha`` outside ``[0, 1)``.
    """
    if num_replicas < 1:
        raise ConfigError(f"num_replicas={num_replicas}: a spread needs at least 1 replica")
    check_alpha(alpha)
    centre = (num_replicas - 1) / 2
    delta = max(centre, 0.5)
    return tuple(1 + alpha * (r - centre) / delta for r in range(num_replicas))


def permuted_multipliers(
    num_replicas: int, alpha: float, *, seed: int, round: int, purpose: str
) -> tuple[float, ...]:
    """Each replica's multiplier under a fresh permutation: ``rho_pi(r)`` for replica ``r`` (HDET, eq. 2)."""
    rho = spread_multipliers(num_replicas, alpha)
    return tuple(rho[i] for i in permutation(num_replicas, words(seed, round, purpose)))
