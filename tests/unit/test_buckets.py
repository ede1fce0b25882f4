"""Full buckets: each value once, and no bucket that could have held more."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from hdet_ray.optim import buckets
from hdet_ray.optim.buckets import Bucket, lay_out_full

SHAPES = st.lists(st.integers(0, 9), max_size=3).map(tuple)


@pytest.fixture(scope="module", autouse=True)
def group_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def elements(bucket: Bucket) -> list[float]:
    staging = torch.empty(bucket.num_staged)
    flats = bucket.flats(staging)
    bucket.fill(flats)
    return torch.cat(flats).tolist()


@given(shapes=st.lists(SHAPES, max_size=12), capacity=st.integers(1, 40), is_strided=st.booleans())
def test_buckets_are_full_and_hold_each_value_once(
    shapes: list[tuple[int, ...]], capacity: int, is_strided: bool
) -> None:
    ends = [sum(math.prod(shape) for shape in shapes[: i + 1]) for i in range(len(shapes))]
    tensors = [
        torch.arange(end - math.prod(shape), end, dtype=torch.float32).reshape(shape)
        for shape, end in zip(shapes, ends, strict=True)
    ]
    if is_strided:
        tensors = [tensor.mT.contiguous().mT if tensor.ndim > 1 else tensor for tensor in tensors]
    laid_out = lay_out_full(tensors, 4 * capacity, None)
    values = [elements(bucket) for bucket in laid_out]
    assert sorted(value for bucket in values for value in bucket) == list(range(sum(map(math.prod, shapes))))
    for bucket, held in zip(laid_out, values, strict=True):
        assert len(held) == bucket.numel
        is_one_row = len(bucket.parts) == 1 and bucket.parts[0].tensors[0].shape[:1] == (1,)
        assert len(held) <= capacity or is_one_row
    # What comes next did not fit any more: a row of a large tensor, or a small one in whole.
    for held, following in itertools.pairwise(values):
        source = next(tensor for tensor, end in zip(tensors, ends, strict=True) if following[0] < end)
        is_large = source.ndim > 0 and source.numel() >= capacity
        assert len(held) + (row_of(source) if is_large else source).numel() > capacity


def row_of(tensor: torch.Tensor) -> torch.Tensor:
    return row_of(tensor[0]) if tensor.ndim > 1 and len(tensor) == 1 else tensor[0]


@given(shapes=st.lists(SHAPES, max_size=12), capacity=st.integers(1, 40))
def test_strides_do_not_change_the_layout(shapes: list[tuple[int, ...]], capacity: int) -> None:
    def layout(is_strided: bool) -> list[list[tuple[int, ...]]]:
        tensors = [torch.zeros(shape) for shape in shapes]
        if is_strided:
            tensors = [tensor.mT.contiguous().mT if tensor.ndim > 1 else tensor for tensor in tensors]
        laid_out = lay_out_full(tensors, 4 * capacity, None)
        return [[(part.numel, *view.shape) for part in b.parts for view in part.tensors] for b in laid_out]

    assert layout(is_strided=False) == layout(is_strided=True)


def test_large_tensors_are_sent_from_where_they_lie() -> None:
    large = torch.zeros(buckets.IN_PLACE_BYTES // 4)
    small = torch.zeros(buckets.IN_PLACE_BYTES // 4 - 1)
    (bucket,) = lay_out_full([small, large, torch.zeros(3)], 25 * 2**20, None)
    assert [part.is_in_place for part in bucket.parts] == [True, False]
    assert bucket.num_staged == small.numel() + 3
