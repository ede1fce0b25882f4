"""The newest chain of a ledger file, found without holding the file in memory."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from hdet_ray.core.codec import from_json
from hdet_ray.core.decide import decide
from hdet_ray.core.report import RoundReport
from hdet_ray.core.state import ScheduleState, state_from_json
from hdet_ray.exceptions import CheckpointError

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

    def signature(self, round: int) -> dict[str, Any] | None:
        """Attempt and report digest of a round of the chain; None where the file doesn't have it."""
        item = next(self.read(round, round + 1), None)
        return None if item is None else {name: item[name] for name in ("attempt", "report_digest")}

    def states(self, rounds: Collection[int]) -> dict[int, ScheduleState]:
        """The states before these rounds, found by deciding the chain once more; those that it has.

        Slow: for the rare case that only they tell where two ledgers of one run part.
        """
        state = self._header()
        found: dict[int, ScheduleState] = {}
        last = max(rounds, default=-1)
        if state is None or last < state.round:
            return found
        chain = self.read(state.round, last)
        while True:
            if state.round in rounds:
                found[state.round] = state
            item = next(chain, None)
            if item is None:
                return found
            state, _ = decide(state, from_json(RoundReport, item["report"]))

    def first_round(self) -> int | None:
        """The round of the state that the file starts with."""
        state = self._header()
        return None if state is None else state.round

    def newest_attempt(self) -> int:
        """The highest attempt that the file has a round of; 0 where it has none."""
        return max((attempt for attempt, _, _ in self._heads()), default=0)

    def _header(self) -> ScheduleState | None:
        if not self._path.exists():
            return None
        with self._path.open("rb") as file:
            try:
                return state_from_json(json.loads(file.readline()))
            except (ValueError, AttributeError, CheckpointError):
                return None

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
