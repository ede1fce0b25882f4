"""DDP's buckets after a restart: the first step rounds as it did in the unbroken run."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hdet_ray.optim.bucket_order import bucket_order, replay_bucket_order
from tests.distributed.ranks import run_on_ranks


class Crossed(nn.Module):
    """Layers are used in another order than they were made in."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.last = nn.Linear(7, 1)
        self.first = nn.Linear(5, 9)
        self.middle = nn.Linear(9, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.middle(torch.tanh(self.first(x)))))


def gradients(ddp: DistributedDataParallel, step: int, rank: int) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(1000 * step + rank)
    ddp.zero_grad()
    ddp(torch.randn(6, 5, generator=draw)).square().mean().backward()
    return [p.grad.clone() for p in ddp.parameters() if p.grad is not None]


def _resumed_and_unbroken(rank: int) -> tuple[bool, list[int] | None, list[int] | None]:
    unbroken = DistributedDataParallel(Crossed())
    for step in range(3):
        gradients(unbroken, step, rank)
    order = bucket_order(unbroken)
    expected = gradients(unbroken, 3, rank)

    resumed = DistributedDataParallel(Crossed())
    replay_bucket_order(resumed, order or [])
    found = gradients(resumed, 3, rank)
    gradients(resumed, 4, rank)
    return all(map(torch.equal, found, expected)), order, bucket_order(resumed)


def test_the_first_gradients_after_a_restart_are_the_unbroken_runs(tmp_path: Path) -> None:
    for is_equal, order, order_after in run_on_ranks(_resumed_and_unbroken, 4, store_path=tmp_path):
        assert is_equal
        assert order == order_after
        assert order != sorted(order or [])


def _replayed(rank: int, order: list[int]) -> list[bool]:
    ddp = DistributedDataParallel(Crossed())
    before = [p.detach().clone() for p in ddp.parameters()]
    replay_bucket_order(ddp, order)
    is_untouched = all(map(torch.equal, before, ddp.parameters())) and all(
        p.grad is None for p in ddp.parameters()
    )
    return [is_untouched, len(gradients(ddp, 0, rank)) == 6]


def test_an_order_of_another_model_is_ignored(tmp_path: Path) -> None:
    assert run_on_ranks(_replayed, 2, [0, 1, 2], store_path=tmp_path) == [[True, True]] * 2


def test_a_replay_changes_neither_weights_nor_gradients(tmp_path: Path) -> None:
    assert run_on_ranks(_replayed, 2, [5, 4, 3, 2, 1, 0], store_path=tmp_path) == [[True, True]] * 2


def test_a_model_without_ddp_has_no_order() -> None:
    model = Crossed()
    replay_bucket_order(model, [0, 1])
    assert bucket_order(model) is None
