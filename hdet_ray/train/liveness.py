"""Liveness: which rank is it that the others wait for?

A collective that times out does not say who was missing. Each rank's daemon thread therefore beats once a
second in the group's store, with the round and step that it is at; rank 0 notes who has fallen silent and
tells it with its own beat. A rank that is stopped, cut off or dead is named within half the collectives'
timeout, in mid-round too, and one that is only slow when the others' collective fails.

A second thread watches the first: a store whose process is stopped answers nobody, and that is rank 0.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Protocol

import torch.distributed as dist

from hdet_ray.exceptions import CollectiveError

logger = logging.getLogger(__name__)

BEAT_INTERVAL_S = 1.0
_SILENT_AFTER_BEATS = 3.5
"""Once a collective has failed, who has missed this many is who it was; a busy process may miss a few."""
_TOLD_AFTER_BEATS = 2.5
_COLLECTIVE_WORDS = ("gloo", "nccl", "timed out", "connection closed", "connection reset", "process group")


class BeatStore(Protocol):
    """What is used of a `torch.distributed.Store`."""

    def set(self, key: str, value: str) -> None: ...

    def check(self, keys: list[str]) -> bool: ...

    def multi_get(self, keys: list[str]) -> list[bytes]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Where a rank runs."""

    node: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """What a rank last said of itself."""

    number: int
    round: int
    step: int
    is_over: bool
    """Its loop has ended: there is no more to come, and nobody waits for it."""
    silent: Mapping[str, float]
    """Rank 0's: for how many seconds each rank that it misses has been silent."""


_NO_BEAT_YET = Beat(number=0, round=-1, step=-1, is_over=False, silent={})


@dataclass(frozen=True, slots=True)
class Suspect:
    """A rank that the others wait for."""

    rank: int
    peer: Peer | None
    at: Beat | None
    silent_s: float | None
    """None: it beats, and is behind."""

    def __str__(self) -> str:
        where = "" if self.peer is None else f" (node {self.peer.node}, pid {self.peer.pid})"
        at = (
            "before its first round"
            if self.at is None or self.at.step < 0
            else f"in round {self.at.round} at step {self.at.step}"
        )
        if self.silent_s is None:
            return f"rank {self.rank}{where} is behind, {at}"
        return f"rank {self.rank}{where} has been silent for {self.silent_s:.0f} s, {at}"


class Liveness:
    """This rank's beats, and what it hears of the others.

    Args:
        store: A client of the group's store that nothing else uses.
        rank: This rank.
        num_ranks: How many ranks beat, surplus ones included.
        node: This node's name.
        hang_s: Silence after which a rank counts as hung.
        on_hang: Called once, in a thread, with the error that names the hung rank.
        interval_s: Between beats.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        store: BeatStore,
        *,
        rank: int,
        num_ranks: int,
        node: str,
        hang_s: float,
        on_hang: Callable[[CollectiveError], None],
        interval_s: float = BEAT_INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.progress: Callable[[], tuple[int, int]] = lambda: (-1, -1)
        """Round and step that this rank is at; its schedule's, once there is one."""
        self._store, self._rank, self._num_ranks = store, rank, num_ranks
        self._hang_s, self._on_hang = hang_s, on_hang
        self._interval_s, self._clock = interval_s, clock
        self._number = 0
        self._answered_at = clock()
        """When the store last answered this rank."""
        self._heard: dict[int, tuple[Beat, float]] = {}
        """Newest beat of each rank that this one listens to, and when it was new."""
        self._peers: dict[int, Peer] = {}
        self._beating: set[int] = set()
        """Ranks whose first beat is there: asking for one that is not would wait."""
        self._listens_to_all = rank == 0
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []
        store.set(_peer_key(rank), json.dumps(asdict(Peer(node=node, pid=os.getpid()))))

    def start(self) -> None:
        """Beat and watch, until `stop`."""
        for loop in (self._beat_loop, self._watch_loop):
            thread = threading.Thread(target=loop, daemon=True, name=f"hdet-{loop.__name__.strip('_')}")
            self._threads.append(thread)
            thread.start()

    def meet(self) -> None:
        """Learn who the others are, when all have begun: who stops before the first beat is missed too."""
        ranks = [rank for rank in self._ranks() if rank != self._rank]
        for rank, raw in zip(ranks, self._get(map(_peer_key, ranks)), strict=True):
            self._peers[rank] = Peer(**json.loads(raw))
            self._heard.setdefault(rank, (_NO_BEAT_YET, self._clock()))

    def stop(self) -> None:
        """The loop has ended: the next beat says so and is the last."""
        self._stopped.set()

    def beat(self) -> None:
        """Say that this rank is alive, and listen."""
        self._number += 1
        round, step = self.progress()
        silent = {
            str(rank): age for rank, age in self._ages().items() if age > self._limit(_TOLD_AFTER_BEATS)
        }
        own = Beat(
            number=self._number,
            round=round,
            step=step,
            is_over=self._stopped.is_set(),
            silent=silent if self._rank == 0 else {},
        )
        self._store.set(_beat_key(self._rank), json.dumps(asdict(own)))
        self._listen(self._ranks())
        self._answered_at = self._clock()

    def suspects(self, after_s: float) -> list[Suspect]:
        """Ranks that have been silent for longer than ``after_s``, as far as this rank has heard."""
        unanswered = self._clock() - self._answered_at
        if unanswered > after_s and self._rank != 0:
            return [self._suspect(0, unanswered)]
        ages = self._ages()
        if not self._listens_to_all and 0 in self._heard:
            beat, heard_at = self._heard[0]
            lag = 0.0 if beat.is_over else self._clock() - heard_at
            ages |= {int(rank): age + lag for rank, age in beat.silent.items()}
        return [self._suspect(rank, age) for rank, age in sorted(ages.items()) if age > after_s]

    def named(self, error: BaseException) -> CollectiveError | None:
        """Who made a collective fail, or None where it was no collective or nobody can be named.

        Waits for a few beats: a rank that has just died was heard of a moment ago.

        Args:
            error: What the user's loop raised.
        """
        if not is_collective_failure(error) or not self._threads:
            return None
        self._listens_to_all = True
        silent_after_s = self._limit(_SILENT_AFTER_BEATS)
        deadline = self._clock() + 2 * silent_after_s
        while not (suspects := self.suspects(silent_after_s)) and self._clock() < deadline:
            if self._stopped.wait(self._interval_s / 4):
                break
        suspects = suspects or self._behind()
        return (
            None if not suspects else self._error_about(suspects, f"a collective failed: {first_line(error)}")
        )

    def _beat_loop(self) -> None:
        is_over = False
        while not is_over:
            is_over = self._stopped.wait(self._interval_s)
            try:
                self.beat()
            except (RuntimeError, dist.DistError) as error:
                logger.debug("no beat: rank=%d error=%s", self._rank, first_line(error))

    def _watch_loop(self) -> None:
        while not self._stopped.wait(self._interval_s):
            suspects = self.suspects(self._hang_s)
            if suspects:
                self._on_hang(self._error_about(suspects, f"no sign of life for {self._hang_s:g} s"))
                return

    def _ranks(self) -> range:
        """Those that this one listens to."""
        return range(self._num_ranks if self._listens_to_all else 1)

    def _listen(self, ranks: range) -> None:
        others = [rank for rank in ranks if rank != self._rank]
        silent = [rank for rank in others if rank not in self._beating]
        new = [rank for rank in silent if self._store.check([_peer_key(rank), _beat_key(rank)])]
        for rank, raw in zip(new, self._get(map(_peer_key, new)), strict=True):
            self._peers[rank] = Peer(**json.loads(raw))
        self._beating.update(new)
        known = [rank for rank in others if rank in self._beating]
        now = self._clock()
        for rank, raw in zip(known, self._get(map(_beat_key, known)), strict=True):
            beat = Beat(**json.loads(raw))
            if rank not in self._heard or self._heard[rank][0].number != beat.number:
                self._heard[rank] = (beat, now)

    def _get(self, keys: map[str]) -> list[bytes]:
        names = list(keys)
        return self._store.multi_get(names) if names else []

    def _ages(self) -> dict[int, float]:
        # Measured from the newest answer: while the store is silent nobody can be heard.
        heard = self._heard.items()
        return {rank: self._answered_at - at for rank, (beat, at) in heard if not beat.is_over}

    def _behind(self) -> list[Suspect]:
        """Ranks that beat, but are at an earlier step than others."""
        steps = {rank: beat.step for rank, (beat, _) in self._heard.items() if beat.step >= 0}
        steps[self._rank] = self.progress()[1]
        furthest = max(steps.values())
        return [self._suspect(r, None) for r, step in sorted(steps.items()) if 0 <= step < furthest]

    def _suspect(self, rank: int, silent_s: float | None) -> Suspect:
        at = self._heard[rank][0] if rank in self._heard else None
        return Suspect(rank, self._peers.get(rank), at, silent_s)

    def _error_about(self, suspects: list[Suspect], why: str) -> CollectiveError:
        round, step = self.progress()
        here = f"rank {self._rank} waits in round {round} at step {step}" if step >= 0 else "the loop began"
        return CollectiveError(
            f"{'; '.join(map(str, suspects))}; {here} ({why}). The group starts again without what is lost; "
            "see whether that process is stopped, out of memory or cut off"
        )

    def _limit(self, beats: float) -> float:
        return beats * self._interval_s


def is_collective_failure(error: BaseException) -> bool:
    """An error is what a collective raises when a rank is missing."""
    if isinstance(error, CollectiveError | dist.DistError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in text for word in _COLLECTIVE_WORDS)


def first_line(error: BaseException) -> str:
    """The beginning of an error's text: the rest of a collective's is a stack of C++."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def node_name() -> str:
    """This machine's name, as people know it."""
    return socket.gethostname()


def _beat_key(rank: int) -> str:
    return f"hdet/beat/{rank}"


def _peer_key(rank: int) -> str:
    return f"hdet/peer/{rank}"
