"""Runs: the schedules of jobs, exchanged with their rank 0 and steered by operators.

What is answered was committed before. Each call is one write, so whatever moment the controller dies at,
a report was taken with all that follows from it, or not at all; the run asks again, and gets the same.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy.orm import Session

from hdet_ray.core.codec import from_json
from hdet_ray.core.state import state_from_json
from hdet_ray.exceptions import HDETError
from hdet_ray.train.protocol import (
    PROTOCOL,
    Answer,
    Directive,
    ExchangeRequest,
    NoteRequest,
    OpenRequest,
    answer_to_json,
)
from hdet_service import command_rows, override_rows, run_rows
from hdet_service.auth import Principal
from hdet_service.events import record
from hdet_service.exchange import Refused, Repeated, Taken, fence, receive
from hdet_service.metrics import (
    SYNC_FAILURES,
    Metrics,
    RunView,
    SyncFailure,
    add_counts,
    count_round,
    one,
)
from hdet_service.metrics.runs import ViewKey
from hdet_service.rewind import Opened, begin
from hdet_service.run_events import record_attempt, record_checkpoint, record_restart, record_round
from hdet_service.run_rows import RunRow, Standings
from hdet_service.states import TERMINAL, State
from hdet_service.steering import Steering
from hdet_service.store.database import Store
from hdet_service.store.errors import StoreError
from hdet_service.store.models import Job
from hdet_service.views import HistoryPage, Views

logger = logging.getLogger(__name__)

Request = TypeVar("Request", OpenRequest, ExchangeRequest, NoteRequest)

_PAUSES = frozenset({"paused", "drained"})


class Runs:
    """Answers rank 0 of every run, and operators.

    Args:
        store: The database.
        epoch: This controller's; an answer of an older one is not listened to.
        metrics: Gets each round's view once it is committed.
        clock: Seconds since the epoch, UTC.
    """

    def __init__(
        self,
        store: Store,
        *,
        epoch: int,
        metrics: Metrics | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._store = store
        self._epoch = epoch
        self._metrics = metrics
        self._clock = clock or store.clock
        self._standings = Standings()
        self._steering = Steering(store, self._clock)
        self._views = Views(store)
        store.on_commit(self._standings.after_commit)

    # ---- said by a run's processes: `hdet_ray.train.protocol` as JSON

    async def open(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """An attempt begins."""
        return await self._answered(OpenRequest, request, self._opened)

    async def adopt(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """An attempt goes on from a state that nothing stored leads to."""
        return await self._answered(OpenRequest, request, self._adopted)

    async def exchange(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Take a round's report; the answer names the commands that it is decided with."""
        return await self._answered(ExchangeRequest, request, self._exchanged)

    async def note(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Something happened; what it means for the job's life is not decided here."""
        return await self._answered(NoteRequest, request, self._noted)

    # ---- said by operators

    async def override(
        self,
        job_id: str,
        body: Mapping[str, Any],
        *,
        if_match: str | None,
        who: Principal,
        dry_run: bool = False,
    ) -> tuple[dict[str, Any], int]:
        """See `Steering.override`: the override or the preview, and the schedule's revision."""
        return await self._steering.override(job_id, body, if_match=if_match, who=who, dry_run=dry_run)

    async def override_remove(
        self, job_id: str, override_id: str, *, if_match: str | None, who: Principal, reason: str = ""
    ) -> tuple[dict[str, Any], int]:
        """See `Steering.remove`."""
        return await self._steering.remove(job_id, override_id, if_match=if_match, who=who, reason=reason)

    async def patch_auto(
        self,
        job_id: str,
        hparam: str,
        *,
        frozen: bool | None = None,
        bounds: Sequence[float] | None = None,
        if_match: str | None,
        who: Principal,
        reason: str = "",
    ) -> tuple[dict[str, Any], int]:
        """See `Steering.patch_auto`."""
        return await self._steering.patch_auto(
            job_id, hparam, frozen=frozen, bounds=bounds, if_match=if_match, who=who, reason=reason
        )

    # ---- read

    async def schedule(self, job_id: str) -> dict[str, Any]:
        """See `Views.schedule`."""
        return await self._views.schedule(job_id)

    async def replicas(self, job_id: str) -> list[dict[str, Any]]:
        """See `Views.replicas`."""
        return await self._views.replicas(job_id)

    async def override_get(self, job_id: str, override_id: str) -> dict[str, Any]:
        """See `Views.override`."""
        return await self._views.override(job_id, override_id)

    async def history(
        self, job_id: str, *, from_round: int | None = None, limit: int, all_attempts: bool = False
    ) -> HistoryPage:
        """See `Views.history`."""
        return await self._views.history(
            job_id, from_round=from_round, limit=limit, all_attempts=all_attempts
        )

    # ---- answering

    async def _answered(
        self,
        kind: type[Request],
        request: Mapping[str, Any],
        handle: Callable[[Request], Awaitable[Answer]],
    ) -> dict[str, Any]:
        if request.get("protocol") != PROTOCOL:
            text = f"protocol {request.get('protocol')!r} is not spoken here, {PROTOCOL} is"
            return answer_to_json(self._answer("protocol", message=text))
        known = {name: request[name] for name in kind.__dataclass_fields__ if name in request}
        try:
            return answer_to_json(await handle(from_json(kind, known)))
        except StoreError:
            raise  # nothing was stored and nothing is wrong with the request: the run tries again
        except HDETError as error:
            logger.error("refused: %s job=%s: %s", kind.__name__, request.get("job"), error)
            return answer_to_json(self._answer("protocol", message=str(error)))

    async def _opened(self, request: OpenRequest) -> Answer:
        return await self._store.write(lambda session: self._open(session, request, is_adopted=False))

    async def _adopted(self, request: OpenRequest) -> Answer:
        return await self._store.write(lambda session: self._open(session, request, is_adopted=True))

    async def _exchanged(self, request: ExchangeRequest) -> Answer:
        answer, view = await self._store.write(lambda session: self._exchange(session, request))
        if view is not None and self._metrics is not None:
            self._metrics.observe_round(request.job, view)
        return answer

    async def _noted(self, request: NoteRequest) -> Answer:
        return await self._store.write(lambda session: self._note(session, request))

    # ---- inside a write

    def _open(self, session: Session, request: OpenRequest, *, is_adopted: bool) -> Answer:
        job = run_rows.load_job(session, request.job)
        if job is None:
            return self._unknown(request.job)
        refused = self._fence(job, request)
        if refused is not None:
            return self._refusal(refused)
        state = state_from_json(request.state)
        outcome = begin(
            self._standings.take(session, job),
            request,
            state,
            start=run_rows.ledger_start(session, job.id),
            stored=lambda round: run_rows.line_of(session, job.id, round),
            has_own_rounds=run_rows.has_rounds_of(session, job.id, request.attempt),
            is_adopted=is_adopted,
        )
        if isinstance(outcome, Opened):
            self._write_opened(session, job, request, outcome)
        elif isinstance(outcome, Refused):
            if request.attempt > job.attempt:
                job.attempt = request.attempt  # older ones are refused from here on
                record_attempt(session, job, request, 0, self._clock())
            return self._refusal(outcome)
        return self._answer("ok", directive=_directive(job))

    def _write_opened(self, session: Session, job: Job, request: OpenRequest, outcome: Opened) -> None:
        standing, now_s = outcome.standing, self._clock()
        abandoned = run_rows.abandon(session, job.id, standing.round)
        if outcome.is_first or outcome.replaces_start:
            run_rows.start_ledger(session, job.id, standing)
        if outcome.replaces_start:
            logger.warning(
                "ledger starts anew: job=%s attempt=%d round=%d", job.id, job.attempt, standing.round
            )
            told = {"attempt": request.attempt, "starts_at_round": standing.round}
            record(session, job.id, "ledger", told, now_s)
        if request.attempt > job.attempt:
            record_attempt(session, job, request, abandoned, now_s)
        override_rows.rewind(session, job.id, standing.state, now_s)
        run_rows.write_opened(session, job, standing)
        job.storage_path = request.storage_path or job.storage_path
        session.flush()
        self._standings.put(session, job.id, standing)

    def _exchange(self, session: Session, request: ExchangeRequest) -> tuple[Answer, RunView | None]:
        run = run_rows.load_run(session, request.job)
        if run is None:
            return self._unknown(request.job), None
        refused = self._fence(run, request)
        if refused is not None:
            _count_failure(session, run.id, SyncFailure.FENCED)
            return self._refusal(refused), None
        standing = self._standings.take(session, run)
        outcome = receive(
            standing,
            request,
            command_rows.of_rounds(session, run.id, min(run.round - 1, request.round)),
            lambda round: run_rows.line_of(session, run.id, round),
        )
        if isinstance(outcome, Taken):
            if request.decided is not None:
                _count_failure(session, run.id, SyncFailure.LATE)
            view = self._write_taken(session, run, outcome)
            self._standings.put(session, run.id, outcome.standing)
            return self._offer(run, outcome, outcome.standing.plan_digest), view
        if standing is not None:
            self._standings.put(session, run.id, standing)  # nothing was changed
        if isinstance(outcome, Repeated):
            return self._offer(run, outcome, outcome.plan_digest), None
        if standing is not None:
            _count_failure(session, run.id, SyncFailure.RESYNC)
        return self._refusal(outcome), None

    def _write_taken(self, session: Session, run: RunRow, taken: Taken) -> RunView | None:
        now_s, report, standing = self._clock(), taken.lines[-1].report, taken.standing
        if taken.finished is None or taken.confirmed is None or taken.verdict is None:
            run_rows.write_taken(session, run, taken, now_s)
            return None
        verdict = taken.verdict
        restart = count_round(
            session,
            run,
            finished=taken.finished,
            report=report,
            verdict=verdict,
            after=standing.state,
            at_s=now_s,
        )
        override_rows.confirm(session, run.id, taken.confirmed, taken.confirmed_before, now_s)
        run_rows.write_taken(session, run, taken, now_s)
        record_round(
            session,
            run.id,
            taken.lines[-1].attempt,
            report=report,
            finished=taken.finished,
            verdict=verdict,
            plan=standing.plan,
            at_s=now_s,
        )
        if restart is not None:
            attempt = taken.lines[-1].attempt
            record_restart(session, run.id, attempt, restart=restart, finished=taken.finished, at_s=now_s)
        return RunView(
            key=ViewKey(standing.attempt, standing.round, standing.plan_digest),
            state=standing.state,
            plan=standing.plan,
            report=report,
            verdict=verdict,
        )

    def _note(self, session: Session, request: NoteRequest) -> Answer:
        job = run_rows.load_job(session, request.job)
        if job is None:
            return self._unknown(request.job)
        is_older = request.attempt is not None and request.attempt < job.attempt
        if request.submission < job.submission or is_older:
            text = f"note {request.kind!r} of driver {request.submission}, which was followed by another"
            return self._answer("fenced", message=text)
        if request.kind == "checkpoint":
            record_checkpoint(session, job, request, self._clock())
            if _has_gone_back(job):
                job.resume_round = None  # from here on its newest checkpoint counts
        return self._answer("ok", directive=_directive(job))

    # ---- answers

    def _fence(self, job: Job | RunRow, request: OpenRequest | ExchangeRequest) -> Refused | None:
        is_over = State(job.state) in TERMINAL
        return fence(
            request,
            attempt=job.attempt,
            submission=job.submission,
            epoch=self._epoch,
            closed=f"job {job.id} is {job.state}: it takes no more reports" if is_over else "",
        )

    def _offer(self, run: RunRow, outcome: Taken | Repeated, plan_digest: str) -> Answer:
        return self._answer(
            "ok", commands=outcome.offered, plan_digest=plan_digest, directive=_directive(run)
        )

    def _unknown(self, job_id: str) -> Answer:
        return self._answer("unknown_job", message=f"there is no job {job_id!r} here")

    def _refusal(self, refused: Refused) -> Answer:
        return self._answer(
            refused.status, message=refused.message, from_round=refused.from_round, line=refused.line
        )

    def _answer(self, status: Any, **fields: Any) -> Answer:
        return Answer(status=status, epoch=self._epoch, **fields)


def _count_failure(session: Session, job_id: str, why: SyncFailure) -> None:
    """A boundary did not go as planned."""
    add_counts(session, job_id, one(SYNC_FAILURES, why))


def _has_gone_back(job: Job) -> bool:
    """What its driver saves now comes after an operator's rollback, and not before it."""
    state = State(job.state)
    return state in (State.RUNNING, State.DEGRADED) or (state is State.STOPPING and job.wanted in _PAUSES)


def _directive(job: Job | RunRow) -> Directive | None:
    return "pause" if job.wanted in _PAUSES else None
