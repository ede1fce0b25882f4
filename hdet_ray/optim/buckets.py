"""Flat buckets: many tensors, few messages.

A bucket remembers which tensors it carries and where each lies in it. Every rank lays out the same shapes
and dtypes to the same buckets, whatever its strides are.
"""

from __future__ import annotations

import itertools
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from enum import Enum, auto

import torch
import torch.distributed as dist
from torch import Tensor

from hdet_ray.exceptions import ConfigError

ALONE_BYTES = 4 * 2**20
"""From this size on a tensor has a collective to itself: two copies would cost more than one more does."""

IN_PLACE_BYTES = 256 * 2**10
"""From this size on a tensor of a full bucket is sent from where it lies: copies cost more than messages."""

PIECE_BYTES = 25 * 2**20
"""Of what is copied in order to be averaged, so much at a time."""


class Way(Enum):
    """How the values of a bucket come together."""

    ALL_REDUCE = auto()
    """The ranks' mean, by the backend's collective."""
    EXCHANGE = auto()
    """The ranks' mean, by messages among ranks of one host."""
    BROADCAST = auto()
    """One rank's values."""


Kind = tuple[torch.dtype, torch.device]
"""Of a flat tensor. 16-bit floats travel as 32-bit ones: their sum can't overflow, and rounds once. The
device is the tensors' own where the process group reaches it."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One flat stretch of a bucket: several small tensors, a large one, or rows of a large one."""

    tensors: tuple[Tensor, ...]
    is_in_place: bool
    """Whether the only tensor is its own flat tensor, which saves both copies."""

    @property
    def numel(self) -> int:
        """Elements of the stretch."""
        return sum(tensor.numel() for tensor in self.tensors)


@dataclass(frozen=True, slots=True, eq=False)
class Bucket:
    """Tensors that travel together, as one flat tensor for each part."""

    parts: tuple[Part, ...]
    kind: Kind
    way: Way

    @property
    def numel(self) -> int:
        """Elements of all parts."""
        return sum(part.numel for part in self.parts)

    @property
    def num_staged(self) -> int:
        """Elements that can't travel from where they lie."""
        return sum(part.numel for part in self.parts if not part.is_in_place)

    @property
    def num_bytes(self) -> int:
        """Bytes of what comes together."""
        return self.numel * self.kind[0].itemsize

    def flats(self, staging: Tensor) -> list[Tensor]:
        """Each part's flat tensor: its own memory, or its stretch of ``staging`` (``num_staged``)."""
        flats, num_used = [], 0
        for part in self.parts:
            if part.is_in_place:
                flats.append(part.tensors[0].view(-1))
            else:
                flats.append(staging[num_used : num_used + part.numel])
                num_used += part.numel
        return flats

    def fill(self, flats: Sequence[Tensor]) -> None:
        """Copy the tensors' values to the flat tensors."""
        for part, flat in zip(self.parts, flats, strict=True):
            if not part.is_in_place:
                torch._foreach_copy_(_pieces(flat, part.tensors), part.tensors)

    def empty(self, flats: Sequence[Tensor], divisor: float) -> None:
        """Put the flat tensors' values, divided by ``divisor``, back into the tensors."""
        for part, flat in zip(self.parts, flats, strict=True):
            if divisor != 1 and flat.is_cpu and not part.is_in_place:
                # One pass over memory instead of two; a kernel launch for each tensor would not pay on a GPU.
                for tensor, piece in zip(part.tensors, _pieces(flat, part.tensors), strict=True):
                    torch.div(piece, divisor, out=tensor)
                continue
            if divisor != 1:
                flat.div_(divisor)
            if not part.is_in_place:
                torch._foreach_copy_(part.tensors, _pieces(flat, part.tensors))


class Staging:
    """Memory that values lie in on their way: two stretches of a kind, in turn, each of the largest need.

    One where there is one need. They are made at first use and kept: on a host, faulting fresh pages in costs
    more than the copies do.
    """

    def __init__(self, needs: Iterable[tuple[Kind, int]]) -> None:
        self._needs: dict[Kind, list[int]] = defaultdict(list)
        for kind, numel in needs:
            if numel:
                self._needs[kind].append(numel)
        self._stretches: dict[Kind, deque[Tensor]] = {}

    def take(self, kind: Kind, numel: int) -> Tensor:
        """So many elements, free again when the next but one of their kind are taken."""
        dtype, device = kind
        if not numel:
            return torch.empty(0, dtype=dtype, device=device)
        if kind not in self._stretches:
            needs = self._needs[kind]
            self._stretches[kind] = deque(
                torch.empty(max(needs), dtype=dtype, device=device) for _ in needs[:2]
            )
        self._stretches[kind].rotate()
        return self._stretches[kind][0][:numel]


def is_averaged(tensor: Tensor) -> bool:
    """Whether a mean of such tensors makes sense: floating and complex ones, not counters and masks."""
    return tensor.is_floating_point() or tensor.is_complex()


def share_memory(tensors: Iterable[Tensor]) -> bool:
    """Whether any two of these tensors have memory in common."""
    return bool(_entangled_ids(_real_and_distinct(tensors)))


def lay_out(
    tensors: Iterable[Tensor], bucket_bytes: int, group: dist.ProcessGroup | None, way: Way
) -> list[Bucket]:
    """Buckets of one flat tensor each, for collectives, filled in the tensors' order; large ones are alone.

    The large ones come first: they need no filling, so that the rest is filled while they are on their way.
    What is large depends on sizes alone and not on strides, so all ranks lay out alike.

    Raises:
        ConfigError: A tensor is sparse.
    """
    real = _real_and_distinct(tensors)
    entangled = _entangled_ids(real)
    alone: list[Bucket] = []
    shared: list[Bucket] = []
    open_: dict[Kind, list[Tensor]] = defaultdict(list)
    filled_bytes: dict[Kind, int] = defaultdict(int)
    for tensor in real:
        kind = _kind(tensor, group, way)
        num_bytes = tensor.numel() * kind[0].itemsize
        if num_bytes >= min(ALONE_BYTES, bucket_bytes):
            is_in_place = _is_own_flat(tensor, kind) and id(tensor) not in entangled
            alone.append(Bucket((Part((tensor,), is_in_place),), kind, way))
            continue
        if filled_bytes[kind] + num_bytes > bucket_bytes:
            shared.append(Bucket(_together(open_.pop(kind)), kind, way))
            filled_bytes[kind] = 0
        open_[kind].append(tensor)
        filled_bytes[kind] += num_bytes
    return [*alone, *shared, *(Bucket(_together(rest), kind, way) for kind, rest in open_.items())]


def lay_out_full(
    tensors: Iterable[Tensor], bucket_bytes: int, group: dist.ProcessGroup | None
) -> list[Bucket]:
    """Buckets to exchange, all of them full: rows of large tensors where they lie, then small ones together.

    Few and equal ones, because ranks wait for each other in each. As in `lay_out`, sizes alone decide. A
    single row that is larger than a bucket makes one.

    Raises:
        ConfigError: A tensor is sparse.
    """
    real = _real_and_distinct(tensors)
    entangled = _entangled_ids(real)
    of_kind: dict[Kind, list[Tensor]] = defaultdict(list)
    for tensor in real:
        of_kind[_kind(tensor, group, Way.EXCHANGE)].append(tensor)
    return [
        Bucket(tuple(parts), kind, Way.EXCHANGE)
        for kind, same in of_kind.items()
        for parts in _fill_up(same, entangled, kind, max(bucket_bytes // kind[0].itemsize, 1))
    ]


def _fill_up(
    tensors: Sequence[Tensor], entangled: Set[int], kind: Kind, capacity: int
) -> Iterator[list[Part]]:
    """Parts of at most ``capacity`` elements together, or of one row or small tensor that alone has more."""
    least = min(IN_PLACE_BYTES // kind[0].itemsize, capacity)
    is_large = [tensor.ndim > 0 and tensor.numel() >= least for tensor in tensors]
    parts: list[Part] = []
    room = capacity
    for tensor in itertools.compress(tensors, is_large):
        is_in_place = _is_own_flat(tensor, kind) and id(tensor) not in entangled
        rows = tensor
        while len(rows) == 1 and rows.ndim > 1:
            rows = rows[0]
        row, start = rows.numel() // len(rows), 0
        while start < len(rows):
            if parts and room < row:
                yield parts
                parts, room = [], capacity
            stop = min(start + max(room // row, 1), len(rows))
            parts.append(Part((rows[start:stop],), is_in_place))
            room -= (stop - start) * row
            start = stop
    small: list[Tensor] = []
    for tensor in itertools.compress(tensors, (not large for large in is_large)):
        if room < tensor.numel() and (parts or small):
            yield [*parts, *_together(small)]
            parts, small, room = [], [], capacity
        small.append(tensor)
        room -= tensor.numel()
    if parts or small:
        yield [*parts, *_together(small)]


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


def speaks_gloo(device: torch.device, group: dist.ProcessGroup | None) -> bool:
    """Whether a tensor of ``device`` travels over ``group`` from host to host memory by Gloo."""
    reached = exchange_device(device, group).type
    return reached == "cpu" and backends_of(group)["cpu"] == "gloo"


def backends_of(group: dist.ProcessGroup | None) -> dict[str, str]:
    """A process group's backend for each type of device that it reaches."""
    pairs = (pair.split(":", 1) for pair in dist.get_backend_config(group).split(","))
    return dict(pairs)


def _together(tensors: Sequence[Tensor]) -> tuple[Part, ...]:
    return (Part(tuple(tensors), is_in_place=False),) if tensors else ()


def _is_own_flat(tensor: Tensor, kind: Kind) -> bool:
    return tensor.is_contiguous() and (tensor.dtype, tensor.device) == kind


def _pieces(flat: Tensor, views: Sequence[Tensor]) -> list[Tensor]:
    """The flat tensor's stretches, one for each view and of its shape."""
    split = torch.split(flat, [view.numel() for view in views])
    return [piece.view(view.shape) for piece, view in zip(split, views, strict=True)]


def _kind(tensor: Tensor, group: dist.ProcessGroup | None, way: Way) -> Kind:
    is_widened = way is not Way.BROADCAST and tensor.dtype.itemsize < 4
    return torch.float32 if is_widened else tensor.dtype, exchange_device(tensor.device, group)


def _real_and_distinct(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Leave out empty and repeated tensors (tied weights); see complex numbers as pairs of real ones."""
    distinct: dict[int, Tensor] = {}
    for tensor in tensors:
        if tensor.layout != torch.strided:
            raise ConfigError(
                f"a tensor of shape {list(tensor.shape)} has layout {tensor.layout}, which has no mean here; "
                f"pass dense tensors"
            )
        if tensor.numel():
            plain = tensor.detach()
            distinct.setdefault(id(tensor), torch.view_as_real(plain) if plain.is_complex() else plain)
    return list(distinct.values())


def _entangled_ids(tensors: Iterable[Tensor]) -> set[int]:
    """Tensors that have memory in common with another: it must not change while the other is on its way."""
    spans = []
    for tensor in tensors:
        extent = 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
        start = tensor.data_ptr()
        spans.append((str(tensor.device), start, start + extent * tensor.itemsize, id(tensor)))
    spans.sort()
    entangled: set[int] = set()
    furthest = ("", 0, 0, 0)
    for span in spans:
        if span[0] == furthest[0] and span[1] < furthest[2]:
            entangled |= {span[3], furthest[3]}
        if span[0] != furthest[0] or span[2] > furthest[2]:
            furthest = span
    return entangled
