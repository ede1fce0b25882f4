"""A sampler that knows where it is, so that a resumed run sees the samples that it had not seen yet.

torch's DistributedSampler keeps no position. This one counts samples of all ranks together: at position p
of W ranks the first p samples of the epoch's order are taken and no others, and rank r's next one is p + r.
So another number of ranks goes on exactly there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import torch
from torch.utils.data import DataLoader, DistributedSampler

from hdet_ray.exceptions import ConfigError

Batch = TypeVar("Batch")


class ElasticSampler(DistributedSampler[int]):
    """torch's DistributedSampler, with a position that any number of ranks can go on from.

    Pass it to `attach` (``sampler=``) and take the batches by `batches`::

        loader = DataLoader(data, batch_size=32, sampler=sampler, num_workers=4)
        start_step = hdet_ray.attach(scheduler, sampler=sampler)
        ...
            sampler.set_epoch(epoch)
            for x, y in sampler.batches(loader): ...

    What it guarantees, for ranks that stand at the same step whenever its state is saved: a run that resumes
    repeats and skips nothing of what its checkpoint counts, at any world size. Only an epoch's last step may
    need to be filled up with fewer samples than there are ranks, which are the epoch's first ones; with
    ``drop_last`` as many are left out instead. The order is ``(seed, epoch)``'s, whatever the world size.

    An epoch that was left in its middle goes on there when it is taken again. Call ``set_epoch`` at the start
    of each epoch, as with DistributedSampler; after a restart begin with ``sampler.epoch``. Give the
    DataLoader a ``generator`` of its own: without one it draws from the global random state whenever it
    starts, which a resumed run does once more.
    """

    samples_taken: int = 0
    """Samples that this rank has taken since the sampler was made; reports tell their number."""
    _position: int = 0
    """Samples of this epoch that all ranks together have taken."""
    _is_counted_by_batches: bool = False

    def __iter__(self) -> Iterator[int]:
        order, num_own = self._order(), self._begin()
        first = self._position + self.rank
        for step in range(num_own):
            if not self._is_counted_by_batches:
                self._count(1)
            # Near the end there may be fewer samples than ranks; then the first ones are used again.
            yield order[(first + step * self.num_replicas) % len(order)]

    def batches(self, loader: DataLoader[Batch]) -> Iterator[Batch]:
        """The loader's batches, counted when the loop takes them.

        A loop over the loader itself counts what is fetched: with ``num_workers`` above 0 that is ahead of
        what was trained on, and a restart would skip it.

        Args:
            loader: A DataLoader with ``sampler=`` this sampler and a ``batch_size``.

        Raises:
            ConfigError: it has another sampler, or batches of its own making.
        """
        if loader.sampler is not self or loader.batch_size is None:
            raise ConfigError(
                "batches() counts the samples of a DataLoader(sampler=this sampler, batch_size=…); this one "
                "has another sampler, or no batch_size"
            )
        left = self._begin()
        self._is_counted_by_batches = True
        try:
            for batch in loader:
                taken = min(loader.batch_size, left)
                left -= taken
                self._count(taken)
                yield batch
        finally:
            self._is_counted_by_batches = False

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; another one than the present starts at its first sample."""
        if epoch != self.epoch:
            self._position = 0
        super().set_epoch(epoch)

    def state_dict(self) -> dict[str, int]:
        """Epoch, and samples taken in it by all ranks together; after its last one, the next epoch."""
        if self._num_own_left() == 0:
            return {"epoch": self.epoch + 1, "position": 0}
        return {"epoch": self.epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where another sampler was, of this or another world size."""
        self.epoch, self._position = state["epoch"], state["position"]
        if self._num_own_left() == 0:  # left out by ``drop_last``, at this world size
            self.epoch, self._position = self.epoch + 1, 0

    def _begin(self) -> int:
        """Samples that this rank takes from here to the epoch's end; an epoch that is over starts anew."""
        if self._num_own_left() == 0:
            self._position = 0
        return self._num_own_left()

    def _num_own_left(self) -> int:
        left = max(self._size() - self._position, 0)
        return left // self.num_replicas if self.drop_last else -(-left // self.num_replicas)

    def _count(self, own: int) -> None:
        self._position += own * self.num_replicas
        self.samples_taken += own

    def _order(self) -> list[int]:
        if not self.shuffle:
            return list(range(self._size()))
        draw = torch.Generator().manual_seed(self.seed + self.epoch)
        order: list[int] = torch.randperm(self._size(), generator=draw).tolist()
        return order

    def _size(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # torch asks for sized datasets in words only
