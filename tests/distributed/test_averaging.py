"""Averages of real ranks: what the mean is, who is left out, and what happens when ranks disagree."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from hdet_ray import average_parameters
from hdet_ray.exceptions import ConfigError, HDETError
from hdet_ray.optim.averaging import Averager
from hdet_ray.optim.buckets import IN_PLACE_BYTES
from tests.distributed.ranks import run_on_ranks

SHAPES = [(3, 5), (7,), (), (40, 30), (2, 2, 2), (0, 4)]


def tensors_of(rank: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(100 + rank)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]


def weighted_mean(weights: Sequence[float], dtype: torch.dtype) -> list[Tensor]:
    """The definition, in float64."""
    columns = zip(*(tensors_of(rank, dtype) for rank in range(len(weights))), strict=True)
    shares = [weight / sum(weights) for weight in weights]
    return [sum(s * t.double() for s, t in zip(shares, column, strict=True) if s) for column in columns]


WEIGHTS = [(1.0, 1.0, 1.0), (0.5, 2.0, 0.3), (1.0, 0.0, 3.0), (0.0, 0.0, 0.7)]
WAYS = list(itertools.product(WEIGHTS, [25 * 2**20, 100, 5], [True, False]))
"""Weights, bytes of a bucket, and whether the ranks know that they share a place."""


def average_all_ways(rank: int) -> list[list[Tensor]]:
    return [average_once(rank, *way) for way in WAYS]


def average_once(rank: int, weights: Sequence[float], bucket_bytes: int, shares_place: bool) -> list[Tensor]:
    tensors = tensors_of(rank)
    if weights[rank] == 0:
        for tensor in tensors:
            tensor.fill_(math.nan)
    averager = Averager(tensors, group=None, bucket_bytes=bucket_bytes, shares_place=shares_place)
    averager.average(weights)
    return tensors


@pytest.fixture(scope="module")
def averages(tmp_path_factory: pytest.TempPathFactory) -> list[list[list[Tensor]]]:
    """By rank and by way, the averaged tensors. One start of processes for all ways."""
    return run_on_ranks(average_all_ways, 3, store_path=tmp_path_factory.mktemp("averages"))


@pytest.mark.parametrize("way", range(len(WAYS)))
def test_every_rank_gets_the_same_weighted_mean(averages: list[list[list[Tensor]]], way: int) -> None:
    expected = weighted_mean(WAYS[way][0], torch.float32)
    torch.testing.assert_close([tensor.double() for tensor in averages[0][way]], expected)
    for other in averages[1:]:
        assert all(torch.equal(a, b) for a, b in zip(averages[0][way], other[way], strict=True))


def test_on_one_host_the_bits_of_a_mean_do_not_depend_on_buckets(
    averages: list[list[list[Tensor]]],
) -> None:
    for weights in WEIGHTS:
        first, *others = [averages[0][i] for i, way in enumerate(WAYS) if way[0] == weights and way[2]]
        for other in others:
            assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def average_large(rank: int) -> tuple[list[Tensor], list[Tensor]]:
    """Tensors that ranks and buckets cut, and some that can't be sent from where they lie."""
    numel = IN_PLACE_BYTES // 4
    generator = torch.Generator().manual_seed(rank)
    tensors = [
        torch.randn(7, numel // 5, generator=generator),
        torch.randn(3, 11, generator=generator),
        torch.randn(2, 3 * numel, generator=generator),
        torch.randn(1, 1, 10 * numel, generator=generator),
        torch.randn(64, 32, 8, 16, generator=generator).to(memory_format=torch.channels_last),
        torch.randn(numel, 2, generator=generator).t(),
        torch.randn(2 * numel, generator=generator, dtype=torch.float64),
    ]
    before = [tensor.clone() for tensor in tensors]
    averager = Averager(tensors, group=None, bucket_bytes=5 * numel, shares_place=True)
    averager.average([1.0] * dist.get_world_size())
    return before, tensors


def test_on_one_host_each_value_is_added_up_in_the_order_of_ranks(tmp_path: Path) -> None:
    num_ranks = 3
    results = run_on_ranks(average_large, num_ranks, store_path=tmp_path)
    columns = list(zip(*(before for before, _ in results), strict=True))
    for _, after in results:
        for (first, *others), tensor in zip(columns, after, strict=True):
            total = first.clone()
            for other in others:
                total += other
            assert torch.equal(tensor, total / num_ranks)


DTYPES = [torch.bfloat16, torch.float16, torch.float64, torch.complex64]


def numbers(rank: int) -> list[Tensor]:
    # Every dtype here can hold these and their mean; the sum of the last ones is no finite float16.
    return [torch.arange(12.0).reshape(3, 4) / 4 + 3 * rank, torch.tensor(30_000.0 + 48 * rank)]


def average_dtypes(rank: int) -> list[list[Tensor]]:
    results = []
    for dtype in DTYPES:
        results.append([tensor.to(dtype) for tensor in numbers(rank)])
        average_parameters(results[-1])
    return results


def test_the_mean_is_right_for_other_dtypes(tmp_path: Path) -> None:
    expected = [sum(column) / 3 for column in zip(*(numbers(rank) for rank in range(3)), strict=True)]
    for results in run_on_ranks(average_dtypes, 3, store_path=tmp_path):
        for dtype, tensors in zip(DTYPES, results, strict=True):
            torch.testing.assert_close(tensors, [tensor.to(dtype) for tensor in expected])


def average_equal_values(rank: int, dtype: torch.dtype) -> bool:
    before = tensors_of(0, dtype)
    after = [tensor.clone() for tensor in before]
    Averager(after, group=None).average([1.0] * dist.get_world_size())
    return all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_equal_half_precision_replicas_stay_what_they_were(tmp_path: Path) -> None:
    assert all(run_on_ranks(average_equal_values, 3, torch.bfloat16, store_path=tmp_path))


def average_strided(rank: int, shares_place: bool) -> tuple[bool, list[float]]:
    image = torch.full((5, 3, 4, 5), float(rank))
    # The same shape with other strides on one of the ranks, and one tensor that fills a bucket alone.
    strided = image.contiguous(memory_format=torch.channels_last) if rank == 1 else image
    large = torch.full((64,), float(rank))
    view = large[:]
    averager = Averager([strided, large], group=None, bucket_bytes=256, shares_place=shares_place)
    averager.average([1.0, 1.0])
    return torch.equal(view, large), torch.cat([strided.flatten(), large]).unique().tolist()


@pytest.mark.parametrize("shares_place", [True, False])
def test_ranks_may_lay_the_same_tensor_out_differently(tmp_path: Path, shares_place: bool) -> None:
    assert run_on_ranks(average_strided, 2, shares_place, store_path=tmp_path) == [(True, [0.5])] * 2


def average_entangled(rank: int, shares_place: bool) -> list[float]:
    """Large tensors that share memory, in whole and in part, and one of other strides on another rank."""
    value = (0.0, 6.0, 3.0)[rank]
    whole, other = torch.full((2, IN_PLACE_BYTES // 4), value), torch.full((600, 600), value)
    if rank == 1:
        other = other.t()
    tensors = [whole[0], other, torch.full((IN_PLACE_BYTES,), value), whole, whole.t(), whole.view(-1)]
    averager = Averager(tensors, group=None, bucket_bytes=2 * IN_PLACE_BYTES, shares_place=shares_place)
    averager.average([1.0] * 3)
    return torch.cat([tensor.flatten() for tensor in tensors]).unique().tolist()


@pytest.mark.parametrize("shares_place", [True, False])
def test_tensors_may_share_memory(tmp_path: Path, shares_place: bool) -> None:
    assert run_on_ranks(average_entangled, 3, shares_place, store_path=tmp_path) == [[3.0]] * 3


def average_counters(rank: int) -> list[float]:
    num_batches = torch.tensor(10 + rank)
    is_seen = torch.tensor([rank == 1, False])
    step = torch.tensor(20.0 + rank)
    weight = torch.tensor([float(rank)])
    averager = Averager([weight, num_batches, is_seen], group=None, source_tensors=[step])
    averager.average([0.0, 1.0, 1.0])
    return [weight.item(), num_batches.item(), is_seen[0].item(), step.item()]


def test_counters_are_taken_from_the_first_rank_that_counts(tmp_path: Path) -> None:
    assert run_on_ranks(average_counters, 3, store_path=tmp_path) == [[1.5, 11, True, 21.0]] * 3


def average_in_halves(rank: int) -> float:
    halves = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    tensor = torch.tensor([float(rank)])
    average_parameters([tensor], group=halves[rank // 2], weight=3.0 if rank % 2 else 1.0)
    return tensor.item()


def test_a_group_averages_among_its_own_ranks(tmp_path: Path) -> None:
    assert run_on_ranks(average_in_halves, 4, store_path=tmp_path) == [0.75, 0.75, 2.75, 2.75]


def average_repeatedly(rank: int) -> list[float]:
    values = [torch.zeros(30) for _ in range(10)]
    averager = Averager(values, group=None, bucket_bytes=200)
    seen = []
    for round_ in range(3):
        for tensor in values:
            tensor.fill_(rank + 10 * round_)
        num_bytes = averager.average([1.0, 1.0])
        seen += [float(torch.stack(values).min()), float(torch.stack(values).max()), num_bytes]
    return seen


def test_one_averager_serves_round_after_round(tmp_path: Path) -> None:
    expected = [0.5, 0.5, 1200, 10.5, 10.5, 1200, 20.5, 20.5, 1200]
    assert run_on_ranks(average_repeatedly, 2, store_path=tmp_path) == [expected] * 2


def average_trained(rank: int) -> tuple[float, bool]:
    weight = torch.nn.Parameter(torch.tensor([float(rank)]))
    tied = weight
    average_parameters([weight, tied])
    (weight * 2).sum().backward()
    return weight.item(), weight.is_leaf and weight.grad is not None


def test_parameters_stay_leaves_and_tied_ones_are_averaged_once(tmp_path: Path) -> None:
    assert run_on_ranks(average_trained, 2, store_path=tmp_path) == [(0.5, True)] * 2


def erroneous_calls(rank: int) -> dict[str, str]:
    two, three = torch.ones(2), torch.ones(3)
    stranger = dist.new_group([0])
    other = rank == 1
    cases: dict[str, tuple[list[Tensor], float]] = {
        "negative weight": ([two], -0.5 if other else 1.0),
        "weight is no number": ([two], math.nan if other else 1.0),
        "weights all zero": ([two], 0.0),
        "other shape": ([two, torch.ones(4) if other else three], 1.0),
        "other dtype": ([two, three.double() if other else three], 1.0),
        "other number": ([two, three] if other else [two], 1.0),
        "sparse": ([torch.eye(2).to_sparse()], 1.0),
    }
    texts = {case: error_text(tensors, None, weight) for case, (tensors, weight) in cases.items()}
    texts["no member"] = error_text([two], stranger, 1.0) if other else "ConfigError: rank 1 is no member"
    return texts


def error_text(tensors: list[Tensor], group: dist.ProcessGroup | None, weight: float) -> str:
    try:
        average_parameters(tensors, group, weight)
    except HDETError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """By rank and by case, the error. All in one group: none of them may leave it out of step."""
    return run_on_ranks(erroneous_calls, 2, store_path=tmp_path_factory.mktemp("errors"))


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("negative weight", "ConfigError: rank 1 gave weight=-0.5"),
        ("weight is no number", "ConfigError: rank 1 gave weight=nan"),
        ("weights all zero", "ConfigError: all 2 weights are 0"),
        ("other shape", "CollectiveError: tensor 1 is float32[4] on rank 1 and float32[3] on rank 0"),
        ("other dtype", "CollectiveError: tensor 1 is float64[3] on rank 1 and float32[3] on rank 0"),
        ("other number", "CollectiveError: rank 1 averages 2 tensors and rank 0 1"),
        ("sparse", "ConfigError: a tensor of shape [2, 2] has layout torch.sparse_coo"),
        ("no member", "ConfigError: rank 1 is no member"),
    ],
)
def test_a_mistake_on_one_rank_is_an_error_on_all(
    errors: list[dict[str, str]], case: str, words: str
) -> None:
    for texts in errors:
        assert texts[case].startswith(words)


def test_a_single_process_averages_with_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    tensor = torch.tensor([1.5])
    average_parameters([tensor])
    assert tensor.item() == 1.5


def test_several_processes_without_a_process_group_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="WORLD_SIZE=2"):
        average_parameters([torch.ones(1)])
