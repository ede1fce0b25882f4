"""Randomness by counters: the same numbers for the same (seed, purpose, counters), wherever they are drawn.

A batch that is a function of its step and rank needs no sampler state: a resumed run, or a simulation
that never ran the steps before, sees the samples that the real run saw.
"""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, purpose: str, *counters: int) -> torch.Generator:
    """A generator of its own for one draw; the global random state is neither read nor moved."""
    text = "/".join([purpose, str(seed), *map(str, counters)])
    word = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(word, "big") >> 1)
