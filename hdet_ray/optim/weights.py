"""The run's weights: what is copied at a boundary, put back, averaged, and checked for health."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from hdet_ray.optim.averaging import Averager, place_of
from hdet_ray.optim.buckets import pieces
from hdet_ray.optim.collective import Collective
from hdet_ray.optim.digests import bit_sums
from hdet_ray.optim.divergence import relative_distance
from hdet_ray.optim.snapshot import Snapshot, optimizer_tensors


class Weights:
    """Parameters, buffers and optimizer state of one rank. Made by all ranks together.

    Args:
        optimizer: Its parameters are what trains.
        module: Its buffers are averaged too; ``None`` where the scheduler was given no model.
        collective: The run's ranks.
        averages_optimizer_state: Whether an average takes the optimizer's moments along.
        grad_scaler: Put back together with the weights.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        module: nn.Module | None,
        collective: Collective,
        *,
        averages_optimizer_state: bool,
        grad_scaler: Any = None,
    ) -> None:
        self._optimizer = optimizer
        self._collective = collective
        self._averages_optimizer_state = averages_optimizer_state
        self.parameters = _unique(p for group in optimizer.param_groups for p in group["params"])
        self.buffers = [] if module is None else _unique(module.buffers())
        self._snapshot = Snapshot([*self.parameters, *self.buffers], optimizer, grad_scaler)
        self._has_snapshot = False
        self._averager: Averager | None = None
        self._averager_key: list[tuple[Any, ...]] = []
        self._shares_place = collective.is_same_on_peers(place_of([*self.parameters, *self.buffers]))

    @property
    def averages_optimizer_state(self) -> bool:
        """An average takes the optimizer's moments along; else each replica keeps its own."""
        return self._averages_optimizer_state

    @property
    def has_snapshot(self) -> bool:
        """A boundary's weights are at hand."""
        return self._has_snapshot

    def take_snapshot(self) -> None:
        """Remember this boundary, in place of the one before."""
        self._snapshot.take()
        self._has_snapshot = True

    @torch.no_grad()
    def equal_snapshot(self) -> bool:
        """The parameters are those of the snapshot."""
        return self._snapshot.holds(self.parameters)

    def restore_snapshot(self) -> None:
        """Go back to the newest boundary."""
        self._snapshot.restore()

    def forget_snapshot(self) -> None:
        """The weights were replaced from outside: the next update begins a new boundary."""
        self._has_snapshot = False

    def release_snapshot(self) -> None:
        """The run has ended: nothing is put back any more, and the copy's memory is free."""
        self._snapshot.release()
        self._has_snapshot = False
        self._averager = None

    @torch.no_grad()
    def is_finite(self) -> bool:
        """All floating parameters and buffers are finite; one host-device sync."""
        kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for t in (*self.parameters, *self.buffers):
            if t.is_floating_point() and t.numel():
                kinds.setdefault((t.device, t.dtype), []).append(t.detach())
        return all(bool(torch.isfinite(_extremes(same)).all()) for same in kinds.values())

    def num_averaged(self) -> int:
        """How many tensors an average would take."""
        averaged, counted = self._state_tensors()
        return len(self.parameters) + len(self.buffers) + len(averaged) + len(counted)

    def moments_digest(self) -> float:
        """A fingerprint of the optimizer state, 48 bits as a float; one host-device sync a device."""
        averaged, counted = self._state_tensors()
        sums = bit_sums([*averaged, *counted])
        return float(int.from_bytes(hashlib.blake2b(repr(sums).encode(), digest_size=6).digest(), "big"))

    def average(self, replica_weights: Sequence[float], *, shares_moments: bool = False) -> int:
        """Replace everything by the replicas' weighted mean; collective.

        Args:
            replica_weights: One weight per replica; a replica of weight 0 takes the others' mean.
            shares_moments: All replicas hold the same optimizer state, and keep it.

        Returns:
            Bytes of what was averaged or copied, as they travel.
        """
        peers = self._collective.peers
        if peers is None or self._collective.num_replicas == 1:
            return 0
        weights = self._rank_weights(replica_weights)
        averaged, counted = self._state_tensors()
        everything = [*self.parameters, *self.buffers]
        if shares_moments:
            return self._averager_of(everything, [], peers).average(weights)
        if self._averages_optimizer_state:
            everything += averaged
            return self._averager_of(everything, counted, peers).average(weights)
        num_bytes = self._averager_of(everything, [], peers).average(weights)
        if not all(replica_weights):
            # Healthy replicas keep their own moments; they lend copies to the one that lost its.
            keeps_own = replica_weights[self._collective.replica] > 0
            for piece in pieces(averaged):  # all of them at once would be two copies more
                num_bytes += self._average_lent(piece, [], weights, peers, keeps_own=keeps_own)
            num_bytes += self._average_lent([], counted, weights, peers, keeps_own=keeps_own)
        return num_bytes

    @torch.no_grad()
    def average_measured(
        self, replica_weights: Sequence[float], *, shares_moments: bool
    ) -> tuple[int, float]:
        """`average` at a boundary, and how far this replica's parameters were from the mean; collective.

        The boundary before is given up for it: its copy's memory holds the parameters meanwhile.

        Returns:
            Bytes as of `average`, and the distance relative to the mean's norm (NaN: there is none).
        """
        if not self._has_snapshot or self._collective.num_replicas == 1:
            return self.average(replica_weights, shares_moments=shares_moments), math.nan
        before = self._snapshot.give_up(len(self.parameters))
        self._has_snapshot = False
        torch._foreach_copy_(before, [p.detach() for p in self.parameters])
        num_bytes = self.average(replica_weights, shares_moments=shares_moments)
        return num_bytes, relative_distance(before, self.parameters)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Parameters and buffers may be overwritten inside; they are put back bit for bit."""
        tensors = [*self.parameters, *self.buffers]
        saved = [t.detach().clone() for t in tensors]
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, copy in zip(tensors, saved, strict=True):
                    tensor.detach().copy_(copy)

    def average_weights_only(self, replica_weights: Sequence[float]) -> None:
        """The same for parameters and buffers alone; collective."""
        peers = self._collective.peers
        if peers is not None and self._collective.num_replicas > 1:
            everything = [*self.parameters, *self.buffers]
            self._averager_of(everything, [], peers).average(self._rank_weights(replica_weights))

    def show_snapshot(self) -> None:
        """Put the boundary's parameters and buffers in place, and leave the optimizer alone."""
        self._snapshot.restore_weights()

    def snapshot_state(self) -> Any:
        """The snapshot as something that `torch.save` takes."""
        return self._snapshot.state_dict()

    def load_snapshot_state(self, state: Any) -> None:
        """Take a saved snapshot for this boundary's."""
        self._snapshot.load_state_dict(state)
        self._has_snapshot = True

    def _averager_of(
        self, tensors: list[Tensor], source_tensors: list[Tensor], peers: dist.ProcessGroup
    ) -> Averager:
        """The last one, whose buckets are at hand; it is given up if it was for other tensors or memory."""
        key = [(id(t), t.data_ptr(), t.dtype, t.shape, t.stride()) for t in (*tensors, *source_tensors)]
        if self._averager is None or key != self._averager_key:
            self._averager = self._new_averager(tensors, source_tensors, peers)
            self._averager_key = key
        return self._averager

    def _new_averager(
        self, tensors: list[Tensor], source_tensors: list[Tensor], peers: dist.ProcessGroup
    ) -> Averager:
        return Averager(
            tensors,
            group=peers,
            shares_place=self._shares_place,
            source_tensors=source_tensors,
        )

    def _average_lent(
        self,
        averaged: list[Tensor],
        counted: list[Tensor],
        weights: Sequence[float],
        peers: dist.ProcessGroup,
        *,
        keeps_own: bool,
    ) -> int:
        """Average copies, where this rank's own tensors stay as they are, or the tensors themselves."""
        self._averager = None  # its memory makes room for the copies
        if keeps_own:
            averaged, counted = [t.clone() for t in averaged], [t.clone() for t in counted]
        return self._new_averager(averaged, counted, peers).average(weights)

    def _state_tensors(self) -> tuple[list[Tensor], list[Tensor]]:
        averaged, counted = optimizer_tensors(self._optimizer)
        return _unique(averaged), _unique(counted)

    def _rank_weights(self, replica_weights: Sequence[float]) -> list[float]:
        """Weights in the order of the peers' ranks."""
        grid = self._collective.grid
        replica_of = {rank: replica for replica, row in enumerate(grid) for rank in row}
        ranks = dist.get_process_group_ranks(self._collective.peers)
        return [replica_weights[replica_of[rank]] for rank in ranks]


def _unique(tensors: Iterable[Tensor]) -> list[Tensor]:
    return list({id(t): t for t in tensors}.values())


def _extremes(tensors: list[Tensor]) -> Tensor:
    """A few numbers of tensors of one kind, all finite where all of the tensors' are."""
    if tensors[0].is_cpu:
        # An infinity norm says as much and takes 20 times as long on a host; on a device it is one kernel.
        return torch.stack([extreme for t in tensors for extreme in t.aminmax()])
    return torch.stack(torch._foreach_norm(tensors, float("inf")))
