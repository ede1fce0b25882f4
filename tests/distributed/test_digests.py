"""Digests: replicas that are equal pass, one flipped bit is found and named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from hdet_ray.exceptions import DivergenceError
from hdet_ray.optim.collective import Collective
from hdet_ray.optim.digests import EqualityCheck, bit_sums
from hdet_ray.optim.mesh import GROUP_DIM, REPLICA_DIM
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
