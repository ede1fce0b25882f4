"""Flat buckets: many tensors, few collectives.

A bucket remembers which tensors it carries and where each lies in it; the flat tensor itself exists only
while it is under way. Every rank lays out the same shapes and dtypes to the same buckets, whatever its
devices and strides are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from hdet_ray.exceptions import ConfigError


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Bucket:
    """Tensors that travel together."""

    tensors: tuple[Tensor, ...]
    dtype: torch.dtype
    """Of the flat tensor. 16-bit floats travel as 32-bit ones: their sum neither overflows nor rounds each time."""
    device: torch.device
    """Of the flat tensor: the tensors' own where the process group reaches it."""
    is_mean: bool
    """Whether the ranks' mean is wanted, or one rank's values."""
    is_in_place: bool
    """Whether the only tensor is its own flat tensor, which saves both copies."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the flat tensor."""
        return sum(tensor.numel() for tensor in self.tensors) * self.dtype.itemsize

    def filled(self) -> Tensor:
        """The tensors' values as one flat tensor."""
        if self.is_in_place:
            return self.tensors[0].detach().view(-1)
        flat = self._new_flat()
        torch._foreach_copy_(self._pieces(flat), [tensor.detach() for tensor in self.tensors])
        return flat

    def zeroed(self) -> Tensor:
        """A flat tensor of zeros, for a rank whose values must not count (0 times NaN would be NaN)."""
        if self.is_in_place:
            return self.tensors[0].detach().view(-1).zero_()
        return self._new_flat().zero_()

    def empty_into_tensors(self, flat: Tensor) -> None:
        """Copy a flat tensor's values back into the tensors."""
        if not self.is_in_place:
            torch._foreach_copy_([tensor.detach() for tensor in self.tensors], self._pieces(flat))

    def _new_flat(self) -> Tensor:
        return torch.empty(self.num_bytes // self.dtype.itemsize, dtype=self.dtype, device=self.device)

    def _pieces(self, flat: Tensor) -> list[Tensor]:
        pieces = flat.split([tensor.numel() for tensor in self.tensors])
        return [piece.view(tensor.shape) for piece, tensor in zip(pieces, self.tensors, strict=True)]


def is_averaged(tensor: Tensor) -> bool:
    """Whether a mean of such tensors makes sense: floating and complex ones, not counters and masks."""
    return tensor.is_floating_point() or tensor.is_complex()


def lay_out(
    tensors: Iterable[Tensor], bucket_bytes: int, group: dist.ProcessGroup | None, *, is_mean: bool
) -> list[Bucket]:
    """Fill buckets in the tensors' order, one open bucket per dtype and device.

    A tensor of at least ``bucket_bytes`` gets a bucket of its own; others share buckets of at most that size.

    Raises:
        ConfigError: A tensor is sparse.
    """
    buckets: list[Bucket] = []
    is_open: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}

    def close(key: tuple[torch.dtype, torch.device]) -> None:
        if members := is_open.pop(key, []):
            buckets.append(_bucket(members, *key, bucket_bytes, is_mean))

    for tensor in _real_and_distinct(tensors):
        key = (_flat_dtype(tensor, is_mean), exchange_device(tensor.device, group))
        size = tensor.numel() * key[0].itemsize
        if size >= bucket_bytes:
            buckets.append(_bucket([tensor], *key, bucket_bytes, is_mean))
            continue
        if sum(member.numel() for member in is_open.get(key, [])) * key[0].itemsize + size > bucket_bytes:
            close(key)
        is_open.setdefault(key, []).append(tensor)
    for key in list(is_open):
        close(key)
    return buckets


def exchange_device(device: torch.device, group: dist.ProcessGroup | None) -> torch.device:
    """Where a tensor of ``device`` has to lie to travel over ``group``.

    Its own device where the group has a backend for it, else the group's accelerator: an optimizer's step
    counts lie on the host, which a group of NCCL alone doesn't reach.
    """
    reached = backends_of(group)
    if device.type in reached:
        return device
    kind = next(iter(reached))
    return torch.device(kind, torch.get_device_module(kind).current_device()) if kind != "cpu" else torch.device(kind)


def backends_of(group: dist.ProcessGroup | None) -> dict[str, str]:
    """A process group's backend for each type of device that it reaches."""
    pairs = (pair.split(":") for pair in dist.get_backend_config(group).split(","))
    return {kind: backend for kind, backend in pairs}


def _bucket(
    members: Sequence[Tensor], dtype: torch.dtype, device: torch.device, bucket_bytes: int, is_mean: bool
) -> Bucket:
    alone = members[0] if len(members) == 1 else None
    is_in_place = (
        alone is not None
        and alone.numel() * dtype.itemsize >= bucket_bytes
        and alone.is_contiguous()
        and (alone.dtype, alone.device) == (dtype, device)
    )
    return Bucket(tensors=tuple(members), dtype=dtype, device=device, is_mean=is_mean, is_in_place=is_in_place)


def _flat_dtype(tensor: Tensor, is_mean: bool) -> torch.dtype:
    return torch.float32 if is_mean and tensor.dtype.itemsize < 4 else tensor.dtype


def _real_and_distinct(tensors: Iterable[Tensor]) -> Iterable[Tensor]:
    """Leave out empty tensors and repetitions (tied weights), and see complex numbers as pairs of real ones."""
    seen: set[int] = set()
    for tensor in tensors:
        if tensor.layout != torch.strided:
            raise ConfigError(
                f"a tensor of shape {list(tensor.shape)} has layout {tensor.layout}, which can't be averaged; "
                f"pass dense tensors (for gradients of embeddings: sparse=False)"
            )
        if id(tensor) in seen or tensor.numel() == 0:
            continue
        seen.add(id(tensor))
        yield torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor
