"""Digests: replicas that are equal pass, one flipped bit is found and named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from hdet_ray import Fixed, HDETOneCycleLR
from hdet_ray.exceptions import DivergenceError
from hdet_ray.optim.collective import Collective
from hdet_ray.optim.digests import EqualityCheck, bit_sums
from hdet_ray.optim.mesh import GROUP_DIM, REPLICA_DIM
from hdet_ray.train.safety import CheckedRounds, compared_parameters
from tests.distributed.ranks import run_on_ranks


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1, dtype=torch.bfloat16))


def compare(rank: int, harmed: tuple[int, ...], ranks_per_replica: int) -> str:
    """Flip one bit of the last layer's weights on some ranks, and say what the check says."""
    world_size = torch.distributed.get_world_size()
    mesh = torch.distributed.device_mesh.init_device_mesh(
        "cpu", (world_size // ranks_per_replica, ranks_per_replica), mesh_dim_names=(REPLICA_DIM, GROUP_DIM)
    )
    model = build()
    if rank in harmed:
        with torch.no_grad():
            model[2].weight.view(torch.int16)[0, 1] ^= 1
    check = EqualityCheck(Collective.connect(mesh=mesh), dict(model.named_parameters()))
    try:
        check.run(round=7)
    except DivergenceError as error:
        return str(error)
    return ""


def train(rank: int, harmed_step: int | None) -> tuple[int, str]:
    """Train data-parallel with a comparison every two rounds of three steps; where it ends, and why."""
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(nn.Linear(3, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = HDETOneCycleLR(
        optimizer, 0.1, total_steps=18, controller=Fixed(alpha=0.0, sync_every=3), model=model
    )
    check = EqualityCheck(scheduler.collective, compared_parameters(scheduler))
    scheduler.on_boundary(CheckedRounds(check, every_rounds=2))
    draw = torch.Generator().manual_seed(rank)
    for step in range(18):
        loss = model(torch.randn(4, 3, generator=draw)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if rank == 1 and step == harmed_step:
            with torch.no_grad():
                model.module.weight.view(torch.int32)[0, 2] ^= 1 << 20
        try:
            scheduler.step(loss)
        except DivergenceError as error:
            return step, str(error)
    return 18, ""


def test_a_healthy_run_is_never_stopped(tmp_path: Path) -> None:
    assert run_on_ranks(train, 2, None, store_path=tmp_path) == [(18, "")] * 2


def test_a_silent_divergence_ends_the_run_at_the_next_comparison(tmp_path: Path) -> None:
    ends = run_on_ranks(train, 2, 7, store_path=tmp_path)  # in round 2; the comparison after round 1 passed
    assert [step for step, _ in ends] == [11, 11]  # the end of round 3
    assert all("after round 3: rank 1 differ from rank 0 in weight (of 2)" in why for _, why in ends)


def test_equal_replicas_pass(tmp_path: Path) -> None:
    assert run_on_ranks(compare, 2, (), 1, store_path=tmp_path) == ["", ""]


def test_one_flipped_bit_is_found_on_every_rank_and_named(tmp_path: Path) -> None:
    messages = run_on_ranks(compare, 3, (1,), 1, store_path=tmp_path)
    assert len(set(messages)) == 1
    assert "after round 7: rank 1 differ from ranks 0, 2 in 2.weight (of 6)" in messages[0]


def test_a_flipped_bit_in_a_group_is_found_among_the_rank_s_peers(tmp_path: Path) -> None:
    (message, *_) = run_on_ranks(compare, 4, (3,), 2, store_path=tmp_path)
    assert "rank 3 differ from rank 1" in message


def test_one_replica_of_several_ranks_is_compared_within(tmp_path: Path) -> None:
    (message, *_) = run_on_ranks(compare, 2, (1,), 2, store_path=tmp_path)
    assert "rank 1 differ from rank 0" in message


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int8, torch.complex64])
def test_any_flipped_bit_changes_the_sum(dtype: torch.dtype) -> None:
    tensor = torch.arange(6).to(dtype)
    before = bit_sums([tensor])
    words = tensor.view(torch.uint8)
    for bit in range(8):
        words[3] ^= 1 << bit
        assert bit_sums([tensor]) != before
        words[3] ^= 1 << bit
    assert bit_sums([tensor]) == before


def test_sums_do_not_depend_on_the_layout_in_memory() -> None:
    tensor = torch.randn(2, 3, 4, 5)
    assert bit_sums([tensor.to(memory_format=torch.channels_last)]) == bit_sums([tensor])
