"""The order of DDP's gradient buckets, carried over a restart.

DDP lays its buckets out anew after the first backward pass of a process, in the order in which gradients
became ready. An all-reduce of more than two ranks adds in an order that follows an element's place in its
bucket, so a resumed run would round its first step's gradients as the unbroken one did not. Replaying the
old order before that step makes the two equal to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from hdet_ray.optim.gradient_sync import ddp_of


def bucket_order(model: nn.Module | None) -> list[int] | None:
    """The parameters' indices in the order of DDP's buckets, or None where DDP has not laid them out anew."""
    ddp = ddp_of(model)
    if ddp is None:
        return None
    logged = ddp._get_ddp_logging_data()  # type: ignore[no-untyped-call]
    layout = str(logged.get("rebuilt_per_bucket_param_indices", ""))
    order = [int(index) for index in layout.replace(",", " ").split()]
    return order or None


def replay_bucket_order(model: nn.Module | None, order: Sequence[int]) -> None:
    """Make DDP lay its buckets out in this order, by one backward pass of zeros. Every rank calls it.

    Gradients are as before when it returns. An order of another model's parameters is ignored: it can
    only cost the last bit.
    """
    ddp = ddp_of(model)
    if ddp is None:
        return
    parameters = [p for p in ddp.module.parameters() if p.requires_grad]
    if sorted(order) != list(range(len(parameters))):
        return
    gradients = [p.grad for p in parameters]
    ddp.reducer.prepare_for_backward([])
    for index in order:
        # A backward pass that starts at a parameter makes ready its gradient alone.
        torch.autograd.backward(parameters[index], torch.zeros_like(parameters[index]))
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
