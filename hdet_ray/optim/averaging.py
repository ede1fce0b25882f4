"""Averaging: one all-reduce per bucket, at converge only.

Large tensors are reduced where they lie, the others in flat buckets, laid out once; between rounds nothing
here runs. Ranks of one host that speak Gloo exchange shares of a bucket instead. While one bucket is on its
way the next is being filled, so at most two copies are alive. A replica's weight is 0 when its health verdict
left it out of the round: whatever its tensors hold goes to nobody, and it takes the mean of the others.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from hdet_ray.exceptions import CollectiveError, ConfigError
from hdet_ray.optim.buckets import (
    Bucket,
    Staging,
    Way,
    backends_of,
    exchange_device,
    is_averaged,
    lay_out,
    lay_out_full,
    share_memory,
    speaks_gloo,
)
from hdet_ray.optim.exchange import Exchange, host_id, num_received

BUCKET_BYTES = 25 * 2**20
"""Bytes of a flat bucket: large enough to hide an all-reduce's latency, small next to a model."""

MAX_STAGED = 2
"""One bucket on its way and one being filled or emptied: the bound of the memory that an average takes."""


def average_parameters(
    tensors: Iterable[Tensor], group: dist.ProcessGroup | None = None, weight: float = 1.0
) -> None:
    """Replace tensors by their weighted mean over the ranks of a group, in place; collective.

    Floating and complex tensors are averaged, ``sum_r w_r x_r / sum_r w_r``. Integer and boolean tensors
    (counters) take the value of the first rank whose weight is positive. Without a process group, and with
    ``WORLD_SIZE`` unset or 1, there is nobody to average with and nothing happens.

    Args:
        tensors: Parameters, buffers or any dense tensors: as many, of the same shapes and dtypes and in the
            same order on every rank.
        group: The ranks to average over, all of which must call this; the default group if None.
        weight: This rank's share, finite and not negative. A rank with weight 0 adds nothing (its tensors
            may hold NaN) and takes the mean.

    Raises:
        ConfigError: On every rank, if any rank's weight is negative or not finite, or all are 0; on this
            rank, if there are several processes but no process group, or it is no member of ``group``.
        CollectiveError: On every rank, if their tensors differ in number, shape or dtype.
    """
    own = list(tensors)
    if not _is_distributed():
        _require_single_process(group)
        check_weights([weight])
        return
    if group is not None and dist.get_rank(group) < 0:
        raise ConfigError(
            f"rank {dist.get_rank()} is no member of the process group that it was given; "
            f"call average_parameters on the group's own ranks only"
        )
    # Weights and digests travel before anything is judged: a rank that raised alone would leave the others
    # waiting.
    weights, (layouts, places) = _gather(weight, layout_digest(own), _digest(place_of(own)), group=group)
    check_weights(weights)
    if len(set(layouts)) > 1:
        raise CollectiveError(_first_difference(own, group))
    Averager(own, group=group, shares_place=len(set(places)) == 1).average(weights)


def check_weights(weights: Sequence[float]) -> None:
    """Raise ConfigError unless all weights (by rank) are finite and not negative, and one is positive."""
    for rank, weight in enumerate(weights):
        if not (math.isfinite(weight) and weight >= 0):
            raise ConfigError(
                f"rank {rank} gave weight={weight}; a weight is finite and at least 0 "
                f"(0 leaves a rank out of the mean, 1 is usual)"
            )
    if not any(weights):
        raise ConfigError(
            f"all {len(weights)} weights are 0, so there is nothing to average; give a rank a positive one"
        )


def layout_digest(tensors: Iterable[Tensor]) -> int:
    """A signed 64-bit fingerprint of number, shapes and dtypes: equal on ranks that can be averaged."""
    return _digest("\n".join(_describe(tensor) for tensor in tensors))


def place_of(tensors: Iterable[Tensor]) -> str:
    """This machine, and the kinds of device there that tensors lie on."""
    return " ".join([host_id(), *(tensor.device.type for tensor in tensors)])


class Averager:
    """The weighted mean of the same tensors, again and again.

    The layout is computed once and its staging memory kept. Whoever puts other tensors in the place of these
    (``optimizer.load_state_dict`` does), or other memory under them (``model.to`` does), makes a new one.

    Args:
        tensors: What to average; floating ones get the mean, others the first included rank's value.
        group: The ranks that average; None for the default group.
        shares_place: `place_of` these tensors is the same on all ranks, as all of them know.
        bucket_bytes: Size of a bucket. A large contiguous tensor is averaged where it lies.
        source_tensors: Tensors that take the first included rank's value instead of a mean although they are
            floating: the optimizer's step counts.
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        *,
        group: dist.ProcessGroup | None,
        shares_place: bool = False,
        bucket_bytes: int = BUCKET_BYTES,
        source_tensors: Sequence[Tensor] = (),
    ) -> None:
        if bucket_bytes < 1:
            raise ConfigError(
                f"bucket_bytes={bucket_bytes} holds no number; use at least 1 ({BUCKET_BYTES} is usual)"
            )
        self._group = group
        self._num_ranks = dist.get_world_size(group) if _is_distributed() else 1
        self._buckets: list[Bucket] = []
        self._share_memory = False
        """One bucket at a time then: all ranks fill a later one with what an earlier one has become."""
        if self._num_ranks > 1:
            self._share_memory = share_memory([*tensors, *source_tensors])
            of_way: dict[Way, list[Tensor]] = {way: [] for way in Way}
            for tensor in tensors:
                of_way[_way_of(tensor, group, shares_place=shares_place)].append(tensor)
            # Half as large: what is received takes as much memory again.
            self._buckets += lay_out_full(of_way[Way.EXCHANGE], bucket_bytes // 2, group)
            self._buckets += lay_out(of_way[Way.ALL_REDUCE], bucket_bytes, group, Way.ALL_REDUCE)
            copied = [*of_way[Way.BROADCAST], *source_tensors]
            self._buckets += lay_out(copied, bucket_bytes, group, Way.BROADCAST)
        self._staging = Staging((bucket.kind, bucket.num_staged) for bucket in self._buckets)
        self._received = Staging(
            (bucket.kind, num_received(bucket.numel, self._num_ranks))
            for bucket in self._buckets
            if bucket.way is Way.EXCHANGE
        )

    @torch.no_grad()
    def average(self, weights: Sequence[float]) -> int:
        """Average over the group, in place; collective.

        Args:
            weights: Every rank's weight, by rank in the group, the same list on every rank.

        Returns:
            Bytes of the buckets.

        Raises:
            ConfigError: ``weights`` has another length than the group, holds a negative or non-finite number,
                or is all zeros.
        """
        check_weights(weights)
        if len(weights) != self._num_ranks:
            raise ConfigError(
                f"{len(weights)} weights for a group of {self._num_ranks} ranks; give one for each"
            )
        if self._share_memory:
            for bucket in self._buckets:
                transfer = self._start(bucket, weights)
                transfer.turn()
                transfer.land()
        else:
            self._overlap(weights)
        return sum(bucket.num_bytes for bucket in self._buckets)

    def _overlap(self, weights: Sequence[float]) -> None:
        in_flight: deque[_Transfer] = deque()
        for bucket in self._buckets:
            while bucket.num_staged and sum(t.is_staged for t in in_flight) == MAX_STAGED:
                in_flight.popleft().land()
            in_flight.append(self._start(bucket, weights))
            if len(in_flight) > 1:
                in_flight[-2].turn()
        if in_flight:
            in_flight[-1].turn()
        while in_flight:
            in_flight.popleft().land()

    def _start(self, bucket: Bucket, weights: Sequence[float]) -> _Transfer:
        flats = bucket.flats(self._staging.take(bucket.kind, bucket.num_staged))
        # Relative to the largest, so that equal weights multiply by exactly 1 and large ones can't overflow.
        shares = [weight / max(weights) for weight in weights]
        match bucket.way:
            case Way.EXCHANGE:
                received = self._received.take(bucket.kind, num_received(bucket.numel, self._num_ranks))
                return _exchange(bucket, flats, received, shares, self._group)
            case Way.ALL_REDUCE:
                return _all_reduce(bucket, flats, shares, self._group)
            case Way.BROADCAST:
                return _broadcast(bucket, flats, shares, self._group)


@dataclass(frozen=True, slots=True, eq=False)
class _Transfer:
    """One bucket on its way."""

    bucket: Bucket
    flats: list[Tensor]
    work: dist.Work | Exchange
    divisor: float = 1.0

    @property
    def is_staged(self) -> bool:
        """Whether it holds staging memory until it has landed."""
        return self.bucket.num_staged > 0

    def turn(self) -> None:
        """Do what the other half of the way needs; a collective needs nothing."""
        if isinstance(self.work, Exchange):
            self.work.turn()

    def land(self) -> None:
        """Wait for the result and put it where it belongs."""
        self.work.wait()
        self.bucket.empty(self.flats, self.divisor)


def _way_of(tensor: Tensor, group: dist.ProcessGroup | None, *, shares_place: bool) -> Way:
    if not is_averaged(tensor):
        return Way.BROADCAST
    return Way.EXCHANGE if shares_place and speaks_gloo(tensor.device, group) else Way.ALL_REDUCE


def _exchange(
    bucket: Bucket,
    flats: list[Tensor],
    received: Tensor,
    shares: Sequence[float],
    group: dist.ProcessGroup | None,
) -> _Transfer:
    if shares[dist.get_rank(group)]:
        bucket.fill(flats)
    return _Transfer(bucket, flats, Exchange(flats, received, shares, group))


def _all_reduce(
    bucket: Bucket, flats: list[Tensor], shares: Sequence[float], group: dist.ProcessGroup | None
) -> _Transfer:
    (flat,) = flats
    own_share = shares[dist.get_rank(group)]
    if own_share == 0:
        flat.zero_()  # Not multiplied: 0 times NaN is NaN.
    else:
        bucket.fill(flats)
        if own_share != 1:
            flat.mul_(own_share)
    operation, divisor = dist.ReduceOp.AVG, 1.0
    if min(shares) != 1 or backends_of(group).get(flat.device.type) != "nccl":
        # Gloo has no AVG, and no backend has a weighted one: sum, then scale once per bucket.
        operation, divisor = dist.ReduceOp.SUM, sum(shares)
    return _Transfer(bucket, flats, dist.all_reduce(flat, op=operation, group=group, async_op=True), divisor)


def _broadcast(
    bucket: Bucket, flats: list[Tensor], shares: Sequence[float], group: dist.ProcessGroup | None
) -> _Transfer:
    (flat,) = flats
    first_included = next(rank for rank, share in enumerate(shares) if share > 0)
    bucket.fill(flats)
    work = dist.broadcast(flat, group=group, group_src=first_included, async_op=True)
    return _Transfer(bucket, flats, work)


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _require_single_process(group: dist.ProcessGroup | None) -> None:
    if group is not None:
        raise ConfigError(
            "a process group was given but torch.distributed is not initialized (any more); "
            "call torch.distributed.init_process_group first, or pass group=None in a single process"
        )
    world_size = os.environ.get("WORLD_SIZE", "1")
    if world_size != "1":
        raise ConfigError(
            f"WORLD_SIZE={world_size} but torch.distributed is not initialized, so the other processes can't "
            f"be reached; call torch.distributed.init_process_group first"
        )


def _gather(
    weight: float, *digests: int, group: dist.ProcessGroup | None
) -> tuple[list[float], list[list[int]]]:
    """Every rank's weight and digests, by rank, in one exchange of a few bytes each."""
    bits = torch.tensor([weight], dtype=torch.float64).view(torch.int64)
    own = torch.cat([bits, torch.tensor(digests)]).to(exchange_device(torch.device("cpu"), group))
    rows = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(rows, own, group=group)
    table = torch.stack(rows).cpu()  # (ranks, 1 + digests)
    return table[:, 0].contiguous().view(torch.float64).tolist(), table[:, 1:].T.tolist()


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), signed=True)


def _first_difference(tensors: Sequence[Tensor], group: dist.ProcessGroup | None) -> str:
    """What to tell ranks that can't be averaged; collective, so that all of them tell the same."""
    layouts: list[list[str]] = [[] for _ in range(dist.get_world_size(group))]
    dist.all_gather_object(layouts, [_describe(tensor) for tensor in tensors], group=group)
    first = layouts[0]
    rank, other = next((rank, layout) for rank, layout in enumerate(layouts) if layout != first)
    remedy = "build the same model and optimizer on every rank, with parameters in the same order"
    if len(other) != len(first):
        return f"rank {rank} averages {len(other)} tensors and rank 0 {len(first)}; {remedy}"
    index = next(index for index, (a, b) in enumerate(zip(first, other, strict=True)) if a != b)
    return f"tensor {index} is {other[index]} on rank {rank} and {first[index]} on rank 0; {remedy}"


def _describe(tensor: Tensor) -> str:
    dtype, layout = (str(name).removeprefix("torch.") for name in (tensor.dtype, tensor.layout))
    return f"{dtype}{list(tensor.shape)}" + ("" if layout == "strided" else f" ({layout})")
