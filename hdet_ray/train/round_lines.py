"""The newest chain of a ledger file, found without holding the file in memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_HEAD = re.compile(rb'\{"attempt": (\d+), "round": (\d+),')


class RoundLines:
    """Rounds as they stand in a ledger file.

    Args:
        path: The file; it may still grow.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, first: int, end: int) -> Iterator[dict[str, Any]]:
        """The chain's rounds from ``first`` to ``end - 1``, in order; none of them where one is missing."""
        places = self._places(first)
        if any(round not in places for round in range(first, end)):
            return
        with self._path.open("rb") as file:
            for round in range(first, end):
                file.seek(places[round])
                item: dict[str, Any] = json.loads(file.readline())
                yield item

    def newest_attempt(self) -> int:
        """The highest attempt that the file has a round of; 0 where it has none."""
        return max((attempt for attempt, _, _ in self._heads()), default=0)

    def _places(self, first: int) -> dict[int, int]:
        """Where each round's newest line begins, in bytes."""
        places: dict[int, int] = {}
        newest = first - 1
        for _, round, place in self._heads():
            if round < first:
                places.clear()  # a newer attempt went back before it
                newest = first - 1
                continue
            for left_behind in range(round + 1, newest + 1):
                places.pop(left_behind, None)
            places[round] = place
            newest = round
        return places

    def _heads(self) -> Iterator[tuple[int, int, int]]:
        """Attempt, round and place of each whole line."""
        if not self._path.exists():
            return
        place = 0
        with self._path.open("rb") as file:
            for line in file:
                match = _HEAD.match(line)
                if match and line.endswith(b"\n"):
                    yield int(match[1]), int(match[2]), place
                place += len(line)
