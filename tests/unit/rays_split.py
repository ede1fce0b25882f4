"""What Ray gives each rank of an `ElasticDataConfig`, in a process; a test holds it to Ray's own."""

from __future__ import annotations

from collections.abc import Iterator


class RaysSplit:
    """One rank's rows of a dataset that are their own numbers.

    Whole rounds of full batches go around, what is left is shared out evenly, and what then is left is not
    given to anyone.
    """

    def __init__(self, num_rows: int, rank: int, num_ranks: int) -> None:
        self._num_rows, self._rank, self._num_ranks = num_rows, rank, num_ranks

    def iter_batches(self, batch_size: int) -> Iterator[dict[str, list[int]]]:
        num_rounds = self._num_rows // (batch_size * self._num_ranks)
        for k in range(num_rounds):
            first = (k * self._num_ranks + self._rank) * batch_size
            yield {"id": list(range(first, first + batch_size))}
        rest = num_rounds * self._num_ranks * batch_size
        own = (self._num_rows - rest) // self._num_ranks
        if own:
            first = rest + self._rank * own
            yield {"id": list(range(first, first + own))}
