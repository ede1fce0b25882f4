"""The distance of a replica from the mean, as a function of tensors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hdet_ray.optim.divergence import largest, relative_distance


def pairs(dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    draw = torch.Generator().manual_seed(1)
    shapes = [(7, 5), (11,), (), (0, 3)]
    mean = [torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype) for shape in shapes]
    off = [torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes]
    return [m + (0.01 * o).to(dtype) for m, o in zip(mean, off, strict=True)], mean


def definition(before: list[Tensor], mean: list[Tensor]) -> float:
    kind = torch.complex128 if mean[0].is_complex() else torch.float64
    apart, size = (
        torch.cat([t.to(kind).flatten() for t in side])
        for side in ([b - m for b, m in zip(before, mean, strict=True)], mean)
    )
    return float(apart.norm().real / size.norm().real)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.complex64])
def test_the_distance_is_that_of_all_tensors_as_one_vector(dtype: torch.dtype) -> None:
    before, mean = pairs(dtype)
    expected = definition(before, mean)
    assert relative_distance(before, mean) == pytest.approx(expected, rel=1e-5)
    assert expected > 1e-3


def test_tensors_of_several_kinds_count_together() -> None:
    before, mean = pairs(torch.float32)
    more_before, more_mean = pairs(torch.float64)
    expected = definition([*map(torch.Tensor.double, before), *more_before], [*mean, *more_mean])
    assert relative_distance([*before, *more_before], [*mean, *more_mean]) == pytest.approx(
        expected, rel=1e-5
    )


def test_the_mean_is_left_alone_to_the_last_bit() -> None:
    before, mean = pairs(torch.float32)
    copies = [m.clone() for m in mean]
    relative_distance(before, mean)
    assert all(torch.equal(m, c) for m, c in zip(mean, copies, strict=True))


def test_sixteen_bit_squares_do_not_overflow() -> None:
    mean = [torch.full((1000,), 300.0, dtype=torch.float16)]
    assert relative_distance([mean[0] * 2], mean) == pytest.approx(1.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_has_no_distance(value: float) -> None:
    assert math.isnan(relative_distance([torch.tensor([value, 1.0])], [torch.ones(2)]))


def test_a_mean_of_zero_has_no_distance() -> None:
    assert math.isnan(relative_distance([torch.ones(2)], [torch.zeros(2)]))


def test_the_largest_is_taken_among_those_that_were_averaged() -> None:
    assert largest([0.1, 0.3, math.nan, 9.0], [1, 1, 1, 0]) == 0.3
    assert largest([math.nan, 9.0], [1, 0]) is None
