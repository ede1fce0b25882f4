"""Exchange: the mean of a bucket among ranks of one host, where every rank adds up one share of it.

Each rank sends every other its values of that rank's share, adds up its own share, and sends the mean to
all. That is an all-reduce in two waits for each other instead of a ring's ``2 (N - 1)``, reads and writes
values where they lie, divides only a share of them on each rank, and adds in the order of ranks, so that a
mean's bits depend neither on buckets nor on what else is averaged. Between hosts a ring is better: there,
ranks of one host would each send to all the others over one link.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

TAG = 0x48444554
"""Of our messages, which a user's own sends and receives in the same group don't meet."""


def host_id() -> str:
    """The same for processes of one machine, in containers too, and another on other machines."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()


class Exchange:
    """One bucket on its way.

    Args:
        flats: Contiguous tensors of one dimension and one dtype on the host, of equal sizes on all ranks. The
            weighted mean over the ranks replaces their values.
        received: Memory of `num_received` elements for the others' values of this rank's share.
        shares: Weight of each rank, by rank in the group. Values of a rank of weight 0 are read by nobody.
        group: The ranks.
    """

    def __init__(
        self,
        flats: Sequence[Tensor],
        received: Tensor,
        shares: Sequence[float],
        group: dist.ProcessGroup | None,
    ) -> None:
        self._shares = shares
        self._group = group
        self._rank = dist.get_rank(group)
        self._pieces = _pieces_of_ranks(flats, len(shares))
        # The nearest first, so that ranks don't all send to the same one.
        self._others = [(self._rank + k) % len(shares) for k in range(1, len(shares))]
        sizes = [piece.numel() for piece in self._pieces[self._rank]]
        self._values = {self._rank: self._pieces[self._rank]}
        self._arrivals: dict[int, list[dist.Work]] = {}
        for i, rank in enumerate(reversed(self._others)):
            if shares[rank]:
                stretch = received[i * sum(sizes) : (i + 1) * sum(sizes)]
                self._values[rank] = list(torch.split(stretch, sizes))
                self._arrivals[rank] = self._receive(self._values[rank], rank)
        self._works: list[dist.Work] = []
        if shares[self._rank]:
            for rank in self._others:
                self._works += self._send(self._pieces[rank], rank)

    def turn(self) -> None:
        """Wait for the others' values, and send the mean of this rank's share."""
        for rank in reversed(self._others):
            # Over this rank's values, which have been sent: a mean is sent by who has received them.
            self._works += self._receive(self._pieces[rank], rank)
        total: list[Tensor] | None = None
        for rank, share in enumerate(self._shares):
            if not share:
                continue
            for work in self._arrivals.get(rank, ()):
                work.wait()
            values = self._values[rank]
            for value in values if share != 1 else ():
                value.mul_(share)
            if total is None:
                total = values
            else:
                for summed, value in zip(total, values, strict=True):
                    summed.add_(value)
        own = self._pieces[self._rank]
        for piece, summed in zip(own, total or (), strict=True):
            torch.div(summed, sum(self._shares), out=piece)
        for rank in self._others:
            self._works += self._send(own, rank)

    def wait(self) -> None:
        """Wait until the mean is in place, and all of this rank's messages have left."""
        for work in self._works:
            work.wait()

    def _send(self, pieces: Sequence[Tensor], rank: int) -> list[dist.Work]:
        works = [dist.isend(piece, group=self._group, group_dst=rank, tag=TAG) for piece in pieces]
        return [work for work in works if work is not None]

    def _receive(self, pieces: Sequence[Tensor], rank: int) -> list[dist.Work]:
        works = [dist.irecv(piece, group=self._group, group_src=rank, tag=TAG) for piece in pieces]
        return [work for work in works if work is not None]


def num_received(numel: int, num_ranks: int) -> int:
    """Elements that a rank receives at most before it adds up its share of ``numel``."""
    return (num_ranks - 1) * -(-numel // num_ranks)


def _pieces_of_ranks(flats: Sequence[Tensor], num_ranks: int) -> list[list[Tensor]]:
    """Cut the tensors, one after the other, in equal shares, one for each rank: pieces of the tensors."""
    numel = sum(flat.numel() for flat in flats)
    pieces: list[list[Tensor]] = [[] for _ in range(num_ranks)]
    first = 0
    for flat in flats:
        for rank, share in enumerate(pieces):
            start = max(rank * numel // num_ranks - first, 0)
            stop = min((rank + 1) * numel // num_ranks - first, flat.numel())
            if start < stop:
                share.append(flat[start:stop])
        first += flat.numel()
    return pieces
