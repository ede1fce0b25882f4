"""A sampler that knows where it is, so that a resumed run sees the samples that it had not seen yet.

torch's DistributedSampler keeps no position. This one counts samples of all ranks together, so its
position means the same at any world size.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import DistributedSampler


class ResumableSampler(DistributedSampler[int]):
    """torch's DistributedSampler, with ``state_dict`` and ``load_state_dict``.

    Take the samples with a DataLoader of ``num_workers=0``: workers fetch ahead of what was trained on.
    Call ``set_epoch`` at the start of each epoch, as with DistributedSampler. An epoch that was left in
    its middle goes on there when it is taken again. Give the DataLoader a ``generator`` of its own: without
    one it draws from the global random state whenever it starts, which a resumed run does once more.
    """

    _position: int = 0
    """Samples of this epoch that all ranks together have taken."""
    samples_taken: int = 0
    """Samples that all ranks together have taken since this sampler was made; reports tell them."""

    def __iter__(self) -> Iterator[int]:
        order = self._order()
        if self._position >= len(order):  # the same epoch once more
            self._position = 0
        while self._position < len(order):
            # Near the end there may be fewer samples than ranks; then the first ones are used again.
            index = order[(self._position + self.rank) % len(order)]
            self._position += self.num_replicas
            self.samples_taken += self.num_replicas
            yield index

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; another one than the present starts at its first sample."""
        if epoch != self.epoch:
            self._position = 0
        super().set_epoch(epoch)

    def state_dict(self) -> dict[str, int]:
        """Epoch, and samples taken in it by all ranks together; after its last one, the next epoch."""
        if self._position >= self._epoch_samples():
            return {"epoch": self.epoch + 1, "position": 0}
        return {"epoch": self.epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where another sampler was, of this or another world size."""
        self.epoch, self._position = state["epoch"], state["position"]

    def _order(self) -> list[int]:
        if not self.shuffle:
            return list(range(self._epoch_samples()))
        draw = torch.Generator().manual_seed(self.seed + self.epoch)
        order: list[int] = torch.randperm(self._size(), generator=draw).tolist()
        return order[: self._epoch_samples()]

    def _epoch_samples(self) -> int:
        size = self._size()
        return size - size % self.num_replicas if self.drop_last else size

    def _size(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # torch asks for sized datasets in words only
