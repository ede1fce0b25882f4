"""Cases that are refused on real ranks: what a case is, and the scheduler that it gets wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from hdet_ray import Auto, Fixed, HDETOneCycleLR
from tests.distributed import loops

Case = tuple[Callable[[int], Any], type[Exception], str]
"""What each rank does with its number, and the error, by type and text, that every rank ends in."""

ODD_ONE = 1
"""The rank that gets something else than the others."""
SEARCHING = Auto(scout_steps=8, pair_steps=16, max_search_ratio=1.0, sync_every=10)
SHARED = Fixed(alpha=1 / 9, sync_every=10)
LOCAL = Fixed(alpha=1 / 9, sync_every=10, gradient_sync="local")


def make(net: nn.Module | None = None, *, is_wrapped: bool = True, **settings: Any) -> HDETOneCycleLR:
    """A scheduler on a small net; what is set differs from case to case."""
    net = loops.make_net() if net is None else net
    model = loops.wrap(net) if is_wrapped else net
    optimizer = settings.pop("optimizer", None) or loops.make_optimizer("sgd", model)
    given = {"max_lr": 0.01, "total_steps": 400, "controller": SHARED, "model": model, "seed": 0, **settings}
    return HDETOneCycleLR(optimizer, **given)


def odd(rank: int, odd: Any, usual: Any) -> Any:
    """One thing on the odd rank, the usual one on the others."""
    return odd if rank == ODD_ONE else usual


def hooked(**settings: Any) -> HDETOneCycleLR:
    """A scheduler on a model that has a communication hook of the user's own."""
    model = loops.wrap(loops.make_net())
    model.register_comm_hook(None, allreduce_hook)
    return HDETOneCycleLR(
        loops.make_optimizer("sgd", model), max_lr=0.1, total_steps=400, model=model, **settings
    )


def told(case: Callable[[int], Any], rank: int) -> tuple[str, str]:
    """The type and the text of the error that a case ends in."""
    try:
        case(rank)
    except Exception as error:
        return type(error).__name__, str(error)
    return "", "no error"
