"""Flat buckets: many tensors, few collectives.

A bucket remembers which tensors it carries and where each lies in it. Every rank lays out the same shapes
and dtypes to the same buckets, whatever its devices and strides are.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from hdet_ray.exceptions import ConfigError

ALONE_BYTES = 4 * 2**20
"""From this size on a tensor travels alone: two copies would cost more than one more collective does."""

PIECE_BYTES = 25 * 2**20
"""Of what is copied in order to be averaged, so much at a time."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Bucket:
    """Tensors that travel together."""

    tensors: tuple[Tensor, ...]
    dtype: torch.dtype
    """Of the flat tensor. 16-bit floats travel as 32-bit ones: their sum can't overflow, and rounds once."""
    device: torch.device
    """Of the flat tensor: the tensors' own where the process group reaches it."""
    is_mean: bool
    """Whether the ranks' mean is wanted, or one rank's values."""
    is_in_place: bool
    """Whether the only tensor is its own flat tensor, which saves both copies."""

    @property
    def numel(self) -> int:
        """Elements of the flat tensor."""
        return sum(tensor.numel() for tensor in self.tensors)

    @property
    def num_bytes(self) -> int:
        """Bytes of the flat tensor."""
        return self.numel * self.dtype.itemsize

    def fill(self, flat: Tensor) -> None:
        """Copy the tensors' values to the flat tensor."""
        if not self.is_in_place:
            torch._foreach_copy_(self._pieces(flat), [tensor.detach() for tensor in self.tensors])

    def empty(self, flat: Tensor, divisor: float) -> None:
        """Put the flat tensor's values, divided by ``divisor``, back into the tensors."""
        if self.is_in_place:
            if divisor != 1:
                flat.div_(divisor)
        elif divisor != 1 and flat.is_cpu:
            # One pass over memory instead of two; a kernel launch for each tensor would not pay on a GPU.
            for tensor, piece in zip(self.tensors, self._pieces(flat), strict=True):
                torch.div(piece, divisor, out=tensor.detach())
        else:
            if divisor != 1:
                flat.div_(divisor)
            torch._foreach_copy_([tensor.detach() for tensor in self.tensors], self._pieces(flat))

    def _pieces(self, flat: Tensor) -> list[Tensor]:
        pieces = torch.split(flat, [tensor.numel() for tensor in self.tensors])
        return [piece.view(tensor.shape) for piece, tensor in zip(pieces, self.tensors, strict=True)]


class Staging:
    """The memory of flat tensors: two per dtype and device, used in turn, each of the largest bucket's size.

    One where there is one bucket. They are made at first use and kept: on a host, faulting fresh pages in
    costs more than the copies do.
    """

    def __init__(self, buckets: Sequence[Bucket]) -> None:
        self._numel: dict[tuple[torch.dtype, torch.device], list[int]] = defaultdict(list)
        for bucket in buckets:
            if not bucket.is_in_place:
                self._numel[bucket.dtype, bucket.device].append(bucket.numel)
        self._flats: dict[tuple[torch.dtype, torch.device], deque[Tensor]] = {}

    def flat_for(self, bucket: Bucket) -> Tensor:
        """The bucket's flat tensor, free again when the next but one of its kind is asked for."""
        if bucket.is_in_place:
            return bucket.tensors[0].detach().view(-1)
        key = (bucket.dtype, bucket.device)
        if key not in self._flats:
            numels = self._numel[key]
            self._flats[key] = deque(
                torch.empty(max(numels), dtype=bucket.dtype, device=bucket.device) for _ in numels[:2]
            )
        self._flats[key].rotate()
        return self._flats[key][0][: bucket.numel]


def is_averaged(tensor: Tensor) -> bool:
    """Whether a mean of such tensors makes sense: floating and complex ones, not counters and masks."""
    return tensor.is_floating_point() or tensor.is_complex()


def lay_out(
    tensors: Iterable[Tensor], bucket_bytes: int, group: dist.ProcessGroup | None, *, is_mean: bool
) -> list[Bucket]:
    """Fill buckets in the tensors' order, one open bucket per dtype and device; large tensors travel alone.

    The large ones come first: they need no filling, so that the rest is filled while they are on their way.
    What is large depends on sizes alone and not on strides, so all ranks lay out alike.

    Raises:
        ConfigError: A tensor is sparse.
    """
    alone: list[Bucket] = []
    shared: list[Bucket] = []
    members: dict[tuple[torch.dtype, torch.device], list[Tensor]] = defaultdict(list)
    filled_bytes: dict[tuple[torch.dtype, torch.device], int] = defaultdict(int)
    for tensor in _real_and_distinct(tensors):
        key = (_flat_dtype(tensor, is_mean), exchange_device(tensor.device, group))
        num_bytes = tensor.numel() * key[0].itemsize
        if num_bytes >= min(ALONE_BYTES, bucket_bytes):
            is_own_flat = tensor.is_contiguous() and (tensor.dtype, tensor.device) == key
            alone.append(_bucket([tensor], key, is_mean=is_mean, is_in_place=is_own_flat))
            continue
        if filled_bytes[key] + num_bytes > bucket_bytes:
            shared.append(_bucket(members.pop(key), key, is_mean=is_mean, is_in_place=False))
            filled_bytes[key] = 0
        members[key].append(tensor)
        filled_bytes[key] += num_bytes
    rest = (_bucket(open_, key, is_mean=is_mean, is_in_place=False) for key, open_ in members.items())
    return [*alone, *shared, *rest]


def pieces(tensors: Iterable[Tensor], piece_bytes: int = PIECE_BYTES) -> Iterator[list[Tensor]]:
    """Tensors in their order, in pieces of at most this many bytes, or of one tensor that alone has more."""
    piece: list[Tensor] = []
    for tensor in tensors:
        if piece and sum(t.nbytes for t in piece) + tensor.nbytes > piece_bytes:
            yield piece
            piece = []
        piece.append(tensor)
    if piece:
        yield piece


def exchange_device(device: torch.device, group: dist.ProcessGroup | None) -> torch.device:
    """Where a tensor of ``device`` has to lie to travel over ``group``.

    Its own device where the group has a backend for it, else the group's accelerator: an optimizer's step
    counts lie on the host, which a group of NCCL alone doesn't reach.
    """
    reached = backends_of(group)
    if device.type in reached:
        return device
    kind = next(iter(reached))
    if kind == "cpu":
        return torch.device("cpu")
    return torch.device(kind, torch.get_device_module(kind).current_device())


def backends_of(group: dist.ProcessGroup | None) -> dict[str, str]:
    """A process group's backend for each type of device that it reaches."""
    pairs = (pair.split(":", 1) for pair in dist.get_backend_config(group).split(","))
    return dict(pairs)


def _bucket(
    members: Sequence[Tensor], key: tuple[torch.dtype, torch.device], *, is_mean: bool, is_in_place: bool
) -> Bucket:
    dtype, device = key
    return Bucket(
        tensors=tuple(members), dtype=dtype, device=device, is_mean=is_mean, is_in_place=is_in_place
    )


def _flat_dtype(tensor: Tensor, is_mean: bool) -> torch.dtype:
    return torch.float32 if is_mean and tensor.dtype.itemsize < 4 else tensor.dtype


def _real_and_distinct(tensors: Iterable[Tensor]) -> Iterable[Tensor]:
    """Leave out empty and repeated tensors (tied weights); see complex numbers as pairs of real ones."""
    seen: set[int] = set()
    for tensor in tensors:
        if tensor.layout != torch.strided:
            raise ConfigError(
                f"a tensor of shape {list(tensor.shape)} has layout {tensor.layout}, which has no mean here; "
                f"pass dense tensors"
            )
        if id(tensor) in seen or tensor.numel() == 0:
            continue
        seen.add(id(tensor))
        yield torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor
