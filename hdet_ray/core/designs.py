"""Balanced two-level designs: several hyperparameters explored at once, one column each.

With independent random columns a few replicas can't tell two hyperparameters apart: at small N
chance makes the columns resemble each other. Orthogonal columns (of a Hadamard matrix where N is a
power of two, of the most orthogonal balanced columns found otherwise) remove that. Which column a
hyperparameter gets, and its sign, is drawn anew each round.
"""

from __future__ import annotations

from functools import lru_cache

from hdet_ray.core.draws import permutation, signs, words
from hdet_ray.exceptions import ConfigError

Column = tuple[int, ...]

_CANDIDATES = 256


def balanced_columns(num_replicas: int, num_columns: int, *, seed: int, round: int) -> tuple[Column, ...]:
    """This round's assignment of two levels to replicas, one column per hyperparameter.

    Returns:
        ``num_columns`` columns of ``num_replicas`` levels in {-1, +1}, each summing to 0 (an odd number
        of replicas leaves one at 0), as orthogonal to each other as could be found.

    Raises:
        ConfigError: more columns than ``num_replicas - 1``, which no design can tell apart.
    """
    check_columns(num_columns, num_replicas)
    pool = _columns(num_replicas, num_columns)
    order = permutation(len(pool), words(seed, round, "design/order"))
    flips = signs(num_columns, words(seed, round, "design/signs"))
    return tuple(tuple(flip * level for level in pool[j]) for j, flip in zip(order, flips, strict=False))


def check_columns(num_columns: int, num_replicas: int) -> None:
    """Raise ConfigError if no design of this many replicas tells this many hyperparameters apart."""
    if num_columns > num_replicas - 1:
        raise ConfigError(
            f"{num_columns} hyperparameters can't be told apart by {num_replicas} replicas; "
            f"explore at most {max(num_replicas - 1, 0)}, or use more replicas"
        )


@lru_cache(maxsize=64)
def _columns(num_replicas: int, num_columns: int) -> tuple[Column, ...]:
    if num_replicas & (num_replicas - 1) == 0:
        return _hadamard_columns(num_replicas)
    return _searched_columns(num_replicas, num_columns)


def _hadamard_columns(size: int) -> tuple[Column, ...]:
    """Sylvester's matrix without its constant column: entry (r, j) is the parity of ``r & j``."""
    return tuple(tuple(-1 if (r & j).bit_count() & 1 else 1 for r in range(size)) for j in range(1, size))


def _searched_columns(num_replicas: int, num_columns: int) -> tuple[Column, ...]:
    """Greedy: each next column is the candidate least correlated with those before it."""
    stream = words(0, num_replicas, "design/search")
    half = num_replicas // 2
    levels = [1] * half + [-1] * half + [0] * (num_replicas - 2 * half)
    columns: list[Column] = []
    for _ in range(num_columns):
        best, best_overlap = None, float("inf")
        for _ in range(_CANDIDATES):
            candidate = tuple(levels[i] for i in permutation(num_replicas, stream))
            overlap = sum(sum(a * b for a, b in zip(candidate, c, strict=True)) ** 2 for c in columns)
            if overlap < best_overlap:
                best, best_overlap = candidate, overlap
            if overlap == 0:
                break
        if best is not None:
            columns.append(best)
    return tuple(columns)
