"""Samples of a run as its ledger tells them: per round, per replica and in all, with those that were lost.

A round that a newer attempt went back before is abandoned: its samples were trained on, and what replaced
it trained on them again. What was begun of a round that never ended stands in no ledger: fewer samples than
a round's for each restart. Search rounds count as any others.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from hdet_ray.core.report import RoundReport

_TOTAL = "samples"


class Told(Protocol):
    """A round of a ledger."""

    @property
    def attempt(self) -> int:
        """Which start of the run it belongs to."""

    @property
    def report(self) -> RoundReport:
        """What its replicas told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSamples:
    """One round's samples; None where nothing counted them."""

    attempt: int
    round: int
    samples: int | None
    """Of all ranks."""
    by_replica: tuple[int, ...]
    """Of each replica's ranks; empty where nothing counted them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplesAccount:
    """A run's samples."""

    rounds: tuple[RoundSamples, ...]
    """The newest chain's, in order."""
    abandoned: tuple[RoundSamples, ...]
    """Rounds that a newer attempt went back before."""

    @property
    def total(self) -> int:
        """What the newest chain has trained on: the run as it stands."""
        return _sum(self.rounds)

    @property
    def lost(self) -> int:
        """What abandoned rounds had trained on."""
        return _sum(self.abandoned)

    @property
    def spent(self) -> int:
        """All that was trained on, as far as rounds ended: the work done."""
        return self.total + self.lost

    @property
    def by_replica(self) -> tuple[int, ...]:
        """The newest chain's by replica; a replica that came later starts at 0."""
        sums: list[int] = []
        for told in self.rounds:
            sums += [0] * (len(told.by_replica) - len(sums))
            for replica, own in enumerate(told.by_replica):
                sums[replica] += own
        return tuple(sums)

    @property
    def lost_by_attempt(self) -> dict[int, int]:
        """Samples of abandoned rounds by the attempt that they belong to."""
        sums: dict[int, int] = {}
        for told in self.abandoned:
            sums[told.attempt] = sums.get(told.attempt, 0) + (told.samples or 0)
        return sums

    @property
    def is_counted(self) -> bool:
        """Every round of the newest chain, of which there is one at least, told its samples."""
        return bool(self.rounds) and all(told.samples is not None for told in self.rounds)


def account(chain: Iterable[Told], abandoned: Iterable[Told] = ()) -> SamplesAccount:
    """Add up what a ledger tells of samples.

    Args:
        chain: The newest chain: ``ledger.items``, or a history's rounds.
        abandoned: ``ledger.abandoned``, or a history's.
    """
    return SamplesAccount(rounds=tuple(map(_of_round, chain)), abandoned=tuple(map(_of_round, abandoned)))


def _of_round(told: Told) -> RoundSamples:
    report = told.report
    counted = report.facts.get(_TOTAL)
    own = [report.facts.get(f"{_TOTAL}/{replica}") for replica in range(len(report.replicas))]
    return RoundSamples(
        attempt=told.attempt,
        round=report.round,
        samples=None if counted is None else round(counted),
        by_replica=tuple(round(number) for number in own if number is not None),
    )


def _sum(rounds: Iterable[RoundSamples]) -> int:
    return sum(told.samples or 0 for told in rounds)
