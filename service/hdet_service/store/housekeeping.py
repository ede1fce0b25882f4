"""What must not grow for ever: ledgers, rounds of abandoned attempts, keys of old submissions, packages.

Run now and then beside the controller's work; each step is a short write of its own, so exchanges
never wait for all of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sqlalchemy import Select, delete, func, select
from sqlalchemy.orm import Session

from hdet_service.events import record
from hdet_service.packages import drop_unused
from hdet_service.store.database import Store
from hdet_service.store.models import Idempotency, Job, LedgerStart, Round
from hdet_service.store.thinning import (
    MAX_SLICE_ROUNDS,
    Excess,
    Prepared,
    Refusal,
    excesses,
    prepare,
    read_slice,
    summary_of,
    thin,
)
from hdet_service.trying import FailuresLogged

logger = logging.getLogger(__name__)

KEYS_KEPT_S = 86_400.0
"""A submission may be repeated with its key for so long, in seconds."""

PACKAGES_KEPT_S = 30 * 86_400.0

EVERY_S = 60.0
"""Between two passes, in seconds."""

_MAX_KEYS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Tidied:
    """What one pass did."""

    num_thinned: int
    """Rounds of which only a summary is left now."""
    num_keys: int
    """Keys that have expired."""
    num_packages: int
    """Packages that nobody has used for long."""
    refusals: tuple[Refusal, ...]
    """Ledgers that had to stay long."""


class Housekeeping:
    """Bounds the store.

    Args:
        store: The controller's.
        keep_rounds: Whole rounds that stay of each job, at least.
        keys_kept_s: Age at which the key of a submission expires, in seconds.
        packages: Where uploaded packages lie; None leaves them alone.
        packages_kept_s: How long a package stays after its last use, in seconds.
        pause_s: Between two steps, so that exchanges come first, in seconds.
    """

    def __init__(
        self,
        store: Store,
        *,
        keep_rounds: int,
        keys_kept_s: float = KEYS_KEPT_S,
        packages: Path | None = None,
        packages_kept_s: float = PACKAGES_KEPT_S,
        pause_s: float = 0.02,
    ) -> None:
        self._store = store
        self._keep_rounds = keep_rounds
        self._keys_kept_s = keys_kept_s
        self._packages = packages
        self._packages_kept_s = packages_kept_s
        self._pause_s = pause_s
        self._refused: set[tuple[str, int]] = set()

    async def run(self, every_s: float = EVERY_S) -> None:
        """Tidy now and then until canceled; what fails is said, and tried again at the next time."""
        while True:
            with FailuresLogged(logger, "tidying failed"):
                await self.tidy()
            await asyncio.sleep(every_s)

    async def tidy(self) -> Tidied:
        """One pass over all jobs.

        Raises:
            StoreError: The database can't be read or written now; what was done stays done.
        """
        num_keys = await self._repeat(self._write_expired)
        num_packages = await self._repeat(self._write_unused)
        num_thinned, refusals = 0, []
        for excess in await self._store.read(lambda session: excesses(session, self._keep_rounds)):
            outcome = await self._thin_ledger(excess)
            if isinstance(outcome, Refusal):
                refusals.append(outcome)
            else:
                num_thinned += outcome
        for job_id in await self._store.read(self._with_old_attempts):
            num_thinned += await self._thin_abandoned(job_id)
        return Tidied(
            num_thinned=num_thinned,
            num_keys=num_keys,
            num_packages=num_packages,
            refusals=tuple(refusals),
        )

    async def _repeat(self, write: Callable[[Session], int]) -> int:
        """One short write after the other, until there is nothing left to do."""
        total = 0
        while done := await self._store.write(write):
            total += done
            await asyncio.sleep(self._pause_s)
        return total

    async def _thin_ledger(self, excess: Excess) -> int | Refusal:
        total = 0
        while found := await self._store.read(partial(read_slice, job_id=excess.job_id, goal=excess.goal)):
            prepared = await asyncio.to_thread(prepare, found)
            if isinstance(prepared, Refusal):
                await self._refuse(prepared)
                return prepared
            told = excess if total == 0 else None
            if not await self._store.write(partial(self._write_slice, prepared=prepared, told=told)):
                break  # the run went back; the next pass looks again
            total += len(prepared.summaries)
            await asyncio.sleep(self._pause_s)
        if total:
            logger.info("ledger thinned: job=%s rounds=%d", excess.job_id, total)
        return total

    async def _thin_abandoned(self, job_id: str) -> int:
        """Summaries for the oldest of them; no replay reads them, so nothing else moves."""
        total = 0
        while thinned := await self._store.write(
            partial(self._write_abandoned, job_id=job_id, is_told=total > 0)
        ):
            total += thinned
            await asyncio.sleep(self._pause_s)
        return total

    async def _refuse(self, refusal: Refusal) -> None:
        """Say it once in a controller's life, not at each pass."""
        if (refusal.job_id, refusal.round) in self._refused:
            return
        self._refused.add((refusal.job_id, refusal.round))
        logger.warning(
            "ledger stays long, it can't be replayed: job=%s round=%d: %s",
            refusal.job_id,
            refusal.round,
            refusal.message,
        )
        await self._store.write(partial(self._write_refusal, refusal=refusal))

    # ---- reads

    def _with_old_attempts(self, session: Session) -> list[str]:
        """Jobs with more whole rounds of abandoned attempts than are kept of the newest chain."""
        jobs = session.scalars(select(Job.id).where(Job.attempt > 1)).all()
        return [job_id for job_id in jobs if _num_abandoned(session, job_id) > self._keep_rounds]

    # ---- writes

    def _write_expired(self, session: Session) -> int:
        oldest = self._store.clock() - self._keys_kept_s
        keys = session.execute(
            select(Idempotency.owner, Idempotency.key).where(Idempotency.at_s < oldest).limit(_MAX_KEYS)
        ).all()
        for owner, key in keys:
            session.execute(delete(Idempotency).where(Idempotency.owner == owner, Idempotency.key == key))
        return len(keys)

    def _write_unused(self, session: Session) -> int:
        if self._packages is None:
            return 0
        now = self._store.clock()
        return drop_unused(session, self._packages, before_s=now - self._packages_kept_s, now_s=now)

    def _write_slice(self, session: Session, prepared: Prepared, told: Excess | None) -> bool:
        is_done = thin(session, prepared)
        if is_done and told is not None:
            data = {"thinned": True, "from_round": told.start, "starts_at_round": told.goal}
            record(session, told.job_id, "ledger", data, self._store.clock())
        return is_done

    def _write_abandoned(self, session: Session, job_id: str, is_told: bool) -> int:
        excess = _num_abandoned(session, job_id) - self._keep_rounds
        if excess <= 0:
            return 0
        oldest = _abandoned(job_id).order_by(Round.attempt, Round.round)
        rows = session.scalars(oldest.limit(min(excess, MAX_SLICE_ROUNDS))).all()
        for row in rows:
            row.item, row.is_thinned = summary_of(row.item), True
        if not is_told:
            data = {"thinned": True, "abandoned_rounds": excess}
            record(session, job_id, "ledger", data, self._store.clock())
        return len(rows)

    def _write_refusal(self, session: Session, refusal: Refusal) -> None:
        if session.get(LedgerStart, refusal.job_id) is None:
            return  # deleted meanwhile
        data = {"thinned": False, "round": refusal.round, "message": refusal.message}
        record(session, refusal.job_id, "ledger", data, self._store.clock())


def _abandoned(job_id: str) -> Select[Round]:
    return select(Round).where(
        Round.job_id == job_id, Round.is_abandoned.is_(True), Round.is_thinned.is_(False)
    )


def _num_abandoned(session: Session, job_id: str) -> int:
    whole = _abandoned(job_id).with_only_columns(func.count())
    return session.scalar(whole) or 0
