"""An attempt begins: does what is stored lead to the state that it begins with? Pure.

Where it does, the run goes on from there and later rounds are abandoned. Where it doesn't, rounds are
missing here (the controller was away, or an answer was lost), and the run is asked to deliver them again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hdet_ray.core.codec import digest
from hdet_ray.core.state import ScheduleState
from hdet_ray.train.protocol import OpenRequest
from hdet_service.exchange import Refused, Standing, Stored, line_leads_to, opened, signature


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """The attempt goes on from its state."""

    standing: Standing
    is_first: bool = False
    """The run had no schedule here."""
    replaces_start: bool = False
    """Its rounds before don't lead here: the ledger starts anew with this state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """It was opened before: nothing changes."""


def begin(
    standing: Standing | None,
    request: OpenRequest,
    state: ScheduleState,
    *,
    start: tuple[int, str] | None,
    stored: Stored,
    has_own_rounds: bool,
    is_adopted: bool,
) -> Opened | Known | Refused:
    """Begin an attempt, of a caller that passed `fence`.

    Args:
        standing: Where the run stands; None where no worker has opened it. Its attempt is the newest known.
        request: Who begins.
        state: What it begins with.
        start: Round and digest of the state that the ledger starts with.
        stored: The newest chain's lines.
        has_own_rounds: A round that this very attempt has trained is stored. Until then it may look for the
            newest state that both sides know, going back as it needs to.
        is_adopted: The run has delivered what it had, and nothing leads there.
    """
    if standing is None:
        return Opened(standing=opened(state, request.num_replicas, request.attempt), is_first=True)
    is_new = request.attempt > standing.attempt
    leads_here = _leads_to(standing, state, request.line, start=start, stored=stored)
    if has_own_rounds and state.round < standing.round and (leads_here or not is_adopted):
        return Known()  # said again, after the run had gone on
    if is_adopted:
        return Opened(
            standing=opened(state, request.num_replicas, request.attempt), replaces_start=not leads_here
        )
    if not leads_here:
        first = _first_needed(standing, state)
        return Refused(
            status="resync",
            from_round=first,
            line=None if first is None else signature(stored(first - 1)),
            message=f"what is stored does not lead to the state of round {state.round}",
        )
    if not is_new and state.round == standing.round:
        return Known()
    before = standing.before if state.round == standing.round else None
    return Opened(standing=opened(state, request.num_replicas, request.attempt, before))


def _leads_to(
    standing: Standing,
    state: ScheduleState,
    told: Mapping[str, Any] | None,
    *,
    start: tuple[int, str] | None,
    stored: Stored,
) -> bool:
    if state.round > standing.round:
        return False
    if start is not None and state.round <= start[0]:
        return start == (state.round, digest(state))
    return line_leads_to(stored(state.round - 1), state, told)


def _first_needed(standing: Standing, state: ScheduleState) -> int | None:
    """The newest line may be the one of a lost answer; the run's own replaces it."""
    if state.round < standing.round:
        return None
    first = standing.round if standing.before is None else standing.round - 1
    return first if first < state.round else None
