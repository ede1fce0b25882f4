"""Randomness that is a function of what it is for: ``(seed, round, purpose)``, never of a global state.

A hash of those three is the stream; the n-th draw hashes the counter n with it. So any machine,
at any world size, in any order, draws the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

_WORD_BYTES = 8
_WORDS_PER_BLOCK = 8


def words(seed: int, round: int, purpose: str) -> Iterator[int]:
    """An endless stream of 64-bit words for one purpose in one round."""
    key = f"{seed}/{round}/{purpose}".encode()
    block = 0
    while True:
        digest = hashlib.blake2b(key + b"/" + str(block).encode()).digest()
        for i in range(_WORDS_PER_BLOCK):
            yield int.from_bytes(digest[i * _WORD_BYTES : (i + 1) * _WORD_BYTES], "little")
        block += 1


def permutation(size: int, stream: Iterator[int]) -> tuple[int, ...]:
    """A uniform permutation of ``range(size)`` (Fisher-Yates)."""
    order = list(range(size))
    for i in range(size - 1, 0, -1):
        j = _below(i + 1, stream)
        order[i], order[j] = order[j], order[i]
    return tuple(order)


def signs(size: int, stream: Iterator[int]) -> tuple[int, ...]:
    """``size`` independent fair signs, each -1 or +1."""
    return tuple(1 if next(stream) & 1 else -1 for _ in range(size))


def _below(bound: int, stream: Iterator[int]) -> int:
    """A uniform integer in ``[0, bound)``, without modulo bias."""
    limit = (1 << 64) - (1 << 64) % bound
    while True:
        word = next(stream)
        if word < limit:
            return word % bound
