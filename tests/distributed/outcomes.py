"""What several ranks found, put together: on the ranks while they run, and in the test afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor

from tests.distributed import loops


def everyones(own: list[Tensor]) -> list[list[Tensor]]:
    """Every rank's tensors, by rank; collective."""
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, own)
    return everyone


def are_equal_on_all_ranks(own: list[Tensor]) -> bool:
    """Every rank holds the same bits; collective."""
    return all(loops.are_bit_equal(other, own) for other in everyones(own))


def failed(outcomes: Sequence[dict[str, Any]], name: str) -> list[tuple[int, str]]:
    """What did not hold of a case, by rank; each rank's outcome of it says what held."""
    return [
        (rank, what)
        for rank, outcome in enumerate(outcomes)
        for what, holds in outcome[name].items()
        if not holds
    ]
