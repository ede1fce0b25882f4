"""With nothing spread, HDET is data parallelism with torch's one-cycle, to the last bit."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch.optim.lr_scheduler import OneCycleLR

from hdet_ray import Fixed, HDETOneCycleLR
from tests.distributed import loops
from tests.distributed.ranks import run_on_ranks

STEPS = 300
MAX_LR = [0.02, 0.05]


def _train_both(rank: int, optimizer_name: str) -> tuple[bool, list[float], list[float]]:
    results = []
    for is_ours in (False, True):
        model = loops.wrap(loops.make_net(batch_norm=True))
        optimizer = loops.make_optimizer(optimizer_name, model)
        if is_ours:
            ours = HDETOneCycleLR(
                optimizer, max_lr=MAX_LR, total_steps=STEPS, controller=Fixed(alpha=0.0), model=model
            )
            loops.train(model, optimizer, ours.step, range(STEPS), rank)
            last_lr = ours.get_last_lr()
        else:
            torchs = OneCycleLR(optimizer, max_lr=MAX_LR, total_steps=STEPS)
            loops.train(model, optimizer, lambda _loss, s=torchs: s.step(), range(STEPS), rank)
            last_lr = torchs.get_last_lr()
        results.append((loops.fingerprint(model, optimizer), last_lr))
    return loops.are_bit_equal(results[0][0], results[1][0]), results[0][1], results[1][1]


@pytest.mark.parametrize("num_ranks", [3, 4])
@pytest.mark.parametrize("optimizer_name", ["adamw", "sgd"])
def test_fixed_without_spread_is_bit_equal_to_ddp_with_torchs_one_cycle(
    tmp_path: Path, num_ranks: int, optimizer_name: str
) -> None:
    for is_equal, torch_lr, our_lr in run_on_ranks(
        _train_both, num_ranks, optimizer_name, store_path=tmp_path
    ):
        assert is_equal
        assert our_lr == torch_lr
