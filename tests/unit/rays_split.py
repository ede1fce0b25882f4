"""What Ray gives each rank of an `ElasticDataConfig`, in a process; a test holds it to Ray's own."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator


class RaysSplit:
    """One rank's rows of a dataset that are their own numbers.

    Whole rounds of full batches go around. What is left is shared out evenly, from a queue in which the
    rest of a batch that is cut goes to the end; what then is left is not given to anyone.
    """

    def __init__(self, num_rows: int, rank: int, num_ranks: int) -> None:
        self._num_rows, self._rank, self._num_ranks = num_rows, rank, num_ranks

    def iter_batches(self, batch_size: int) -> Iterator[dict[str, list[int]]]:
        rows = range(self._num_rows)
        num_rounds = len(rows) // (batch_size * self._num_ranks)
        for k in range(num_rounds):
            first = (k * self._num_ranks + self._rank) * batch_size
            yield {"id": list(rows[first : first + batch_size])}
        rest = rows[num_rounds * self._num_ranks * batch_size :]
        own = len(rest) // self._num_ranks
        if own:
            queue = deque(list(rest[i : i + batch_size]) for i in range(0, len(rest), batch_size))
            *_, last = [_take(queue, own) for _ in range(self._rank + 1)]
            yield {"id": last}


def _take(queue: deque[list[int]], count: int) -> list[int]:
    taken: list[int] = []
    while len(taken) < count:
        block = queue.popleft()
        needed = count - len(taken)
        taken += block[:needed]
        if block[needed:]:
            queue.append(block[needed:])
    return taken
