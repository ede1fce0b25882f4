"""Jobs: what is asked of them, from submission to deletion. What follows from it is `supervision`'s.

Every change is one write: the row, its transition, its event and its audit, committed before anything is
done about it and before it is answered.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from hdet_service.auth import Principal
from hdet_service.job_rows import load
from hdet_service.logs import Logs
from hdet_service.metrics import SubmissionResult
from hdet_service.problems import Conflict, ServiceError, missing_job
from hdet_service.reconcile import PAUSES, Wanted
from hdet_service.schemas import JobSpec
from hdet_service.settings import Settings
from hdet_service.states import ACTIVE, TERMINAL, Reason, State
from hdet_service.store.database import Store
from hdet_service.store.models import WITHOUT_SCHEDULE, ControllerRow, Job, JobLabel
from hdet_service.submission import (
    Admission,
    Submission,
    check_entrypoint,
    check_environment,
    check_package,
    preview_of,
    read_admission,
)
from hdet_service.transitions import audit, enter, standing, touch

Change = Callable[[Session, Job, float], None]


class Jobs:
    """What callers do with jobs.

    Args:
        store: The database.
        settings: The service's.
        logs: Kept output, deleted with its job.
        wake: Called after a change that something may follow from.
        observe: Told how each submission was answered.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        logs: Logs,
        wake: Callable[[], None],
        observe: Callable[[SubmissionResult], None],
    ) -> None:
        self._store = store
        self._settings = settings
        self._logs = logs
        self._wake = wake
        self._observe = observe

    # ---- reading

    async def get(self, job_id: str) -> Job:
        """A job, without its schedule.

        Raises:
            NotFound: there is none of this id.
        """
        return await self._store.read(lambda session: require(session, job_id))

    async def list(
        self,
        *,
        states: Sequence[str] = (),
        labels: Mapping[str, str] | None = None,
        owner: str | None = None,
        before_id: str | None = None,
        limit: int,
    ) -> Sequence[Job]:
        """Jobs, newest first.

        Args:
            states: Only those in one of these; empty: all.
            labels: Only those that have all of these.
            owner: Only those of this token.
            before_id: Only those that are older than this id (the last one of the page before).
            limit: At most so many.
        """
        query = select(Job).options(*WITHOUT_SCHEDULE).order_by(Job.id.desc()).limit(limit)
        if states:
            query = query.where(Job.state.in_(states))
        if owner is not None:
            query = query.where(Job.owner == owner)
        if before_id is not None:
            query = query.where(Job.id < before_id)
        for key, value in (labels or {}).items():
            labelled = select(JobLabel.job_id).where(JobLabel.key == key, JobLabel.value == value)
            query = query.where(Job.id.in_(labelled))
        return await self._store.read(lambda session: session.scalars(query).all())

    async def admission(self) -> Admission:
        """Slots and queue as they are."""
        return await self._store.read(lambda session: read_admission(session, self._settings))

    # ---- submitting

    async def submit(
        self, spec: JobSpec, who: Principal, idempotency_key: str | None, body_digest: str
    ) -> tuple[Job, bool]:
        """Queue a job.

        Args:
            spec: What is asked for.
            who: Its owner.
            idempotency_key: The same one with the same body is the same submission.
            body_digest: Of the body, to tell.

        Returns:
            The job, and whether it is new.

        Raises:
            Forbidden: the entrypoint is not on the allowlist.
            Invalid: a package that was never uploaded, or more in config and env_vars than reaches a process.
            IdempotencyMismatch: the key was used with another body.
        """
        submission = Submission(spec, who, idempotency_key, body_digest)
        try:
            check_entrypoint(spec, self._settings)
            check_environment(spec, who, self._settings)
            job_id = self._store.new_id()
            job, is_new = await self._store.write(
                lambda session: submission.store(session, job_id, self._store.clock())
            )
        except ServiceError:
            self._observe(SubmissionResult.REFUSED)
            raise
        self._observe(SubmissionResult.CREATED if is_new else SubmissionResult.REPEATED)
        if is_new:
            self._wake()
        return job, is_new

    async def preview(self, spec: JobSpec, who: Principal) -> dict[str, Any]:
        """What a submission would do; nothing is stored.

        Raises:
            Forbidden: the entrypoint is not on the allowlist.
            Invalid: a package that was never uploaded.
        """
        check_entrypoint(spec, self._settings)
        check_environment(spec, who, self._settings)

        def read(session: Session) -> dict[str, Any]:
            check_package(session, spec)
            return preview_of(spec, who, read_admission(session, self._settings), self._settings)

        return await self._store.read(read)

    # ---- steering

    async def cancel(self, job_id: str, who: Principal, reason: str = "") -> Job:
        """Stop a job for good. Doing it twice is doing it once, and one that has ended stays as it ended.

        Raises:
            NotFound: no such job.
        """

        def change(session: Session, job: Job, now: float) -> None:
            state = State(job.state)
            if state in TERMINAL or job.wanted == Wanted.CANCELED:
                return
            job.wanted = Wanted.CANCELED.value
            text = _by("Canceled", who, reason)
            if state in ACTIVE:
                enter(session, job, State.STOPPING, Reason.CANCELING, text, now)
            else:
                enter(session, job, State.CANCELED, Reason.CANCELED, text, now)

        return await self._change(job_id, who, "cancel", reason, change)

    async def pause(
        self, job_id: str, who: Principal, reason: str = "", *, wanted: Wanted = Wanted.PAUSED
    ) -> Job:
        """Stop a job once it has saved a checkpoint; `resume` goes on from there.

        Raises:
            NotFound: no such job.
            Conflict: it has ended, or is being canceled.
        """

        def change(session: Session, job: Job, now: float) -> None:
            state = State(job.state)
            if state in TERMINAL or job.wanted == Wanted.CANCELED:
                raise Conflict(f"job {job_id} is {job.state} ({job.reason}): there is nothing to pause")
            if state is State.PAUSED or job.wanted in PAUSES:
                if job.wanted == Wanted.DRAINED and wanted is Wanted.PAUSED:
                    job.wanted = wanted.value  # the end of the drain lets it lie
                    touch(job, now)
                return
            job.wanted = wanted.value
            text = _by("Pausing", who, reason)
            if state is State.QUEUED:
                enter(session, job, State.PAUSED, Reason.PAUSED, _by("Paused in the queue", who, reason), now)
                job.not_before_s = None
            elif state is State.STARTING:
                # No worker has opened the run: there is nothing to save that isn't saved.
                enter(session, job, State.STOPPING, Reason.PAUSING, f"Paused at its start: {text}", now)
            else:
                enter(session, job, State.STOPPING, Reason.PAUSING, text, now)

        return await self._change(job_id, who, "pause", reason, change)

    async def resume(self, job_id: str, who: Principal, reason: str = "") -> Job:
        """Queue a paused job again; it goes on from its newest checkpoint. One that isn't paused goes on.

        Raises:
            NotFound: no such job.
            Conflict: it has ended, or is still stopping.
        """

        def change(session: Session, job: Job, now: float) -> None:
            state = State(job.state)
            if state in TERMINAL or state is State.STOPPING:
                hint = "wait until it is PAUSED" if job.wanted in PAUSES else "submit it again"
                raise Conflict(f"job {job_id} is {job.state} ({job.reason}): it can't be resumed; {hint}")
            if state is not State.PAUSED:
                return
            job.wanted = None
            enter(session, job, State.QUEUED, Reason.WAITING_FOR_SLOT, _by("Resumed", who, reason), now)

        return await self._change(job_id, who, "resume", reason, change)

    async def rollback(self, job_id: str, round: int, who: Principal, reason: str = "") -> Job:
        """Start a job anew from the checkpoint of a round. The caller has checked that there is one.

        Raises:
            NotFound: no such job.
            Conflict: it has ended, is stopping, or has not got to that round.
        """

        def change(session: Session, job: Job, now: float) -> None:
            state = State(job.state)
            if state in TERMINAL or state is State.STOPPING:
                raise Conflict(f"job {job_id} is {job.state} ({job.reason}): it can't go back to a round")
            if round > job.round:
                raise Conflict(f"round={round} is not reached yet: job {job_id} is in round {job.round}")
            job.resume_round = round
            job.revision += 1
            text = f"Back to round {round}: {_by('asked for', who, reason)}"
            if state in ACTIVE:
                job.wanted = Wanted.ROLLED_BACK.value
                enter(session, job, State.STOPPING, Reason.PAUSING, text, now)
            else:
                enter(session, job, state, Reason(job.reason), text, now)

        return await self._change(job_id, who, "rollback", reason, change)

    async def delete(self, job_id: str, who: Principal, reason: str = "") -> None:
        """Forget a job that has ended: its rows, its kept output, and its run where that is ours to keep.

        Raises:
            NotFound: no such job.
            Conflict: it has not ended.
        """

        def write(session: Session) -> None:
            job = require(session, job_id)
            if State(job.state) not in TERMINAL:
                raise Conflict(f"job {job_id} is {job.state}: cancel it, then delete it")
            audit(
                session,
                actor=who.name,
                action="delete",
                job_id=None,
                before={**standing(job), "id": job_id, "name": job.name, "owner": job.owner},
                after=None,
                reason=reason,
                now_s=self._store.clock(),
            )
            session.execute(delete(Job).where(Job.id == job_id))
            session.info.setdefault("deleted", []).append(job_id)

        await self._store.write(write)
        await asyncio.to_thread(self._logs.delete, job_id)
        await asyncio.to_thread(_remove_own_run, self._settings, job_id)

    # ---- draining

    async def drain(self, who: Principal, reason: str = "", *, is_draining: bool = True) -> Sequence[str]:
        """Admit nothing and pause what runs, or the opposite of both.

        Returns:
            Ids of the jobs that pause, or go on.
        """

        def write(session: Session) -> Sequence[str]:
            row = session.get(ControllerRow, 1)
            before = row is not None and row.is_draining
            if row is not None:
                row.is_draining = is_draining
            if before != is_draining:
                audit(
                    session,
                    actor=who.name,
                    action="drain" if is_draining else "undrain",
                    job_id=None,
                    before={"draining": before},
                    after={"draining": is_draining},
                    reason=reason,
                    now_s=self._store.clock(),
                )
            query = select(Job.id).where(
                Job.state.in_([state.value for state in ACTIVE]) & (Job.state != State.STOPPING.value)
                if is_draining
                else (Job.state == State.PAUSED.value) & (Job.wanted == Wanted.DRAINED.value)
            )
            return session.scalars(query).all()

        job_ids = await self._store.write(write)
        text = reason or "drain"
        for job_id in job_ids:
            try:
                if is_draining:
                    await self.pause(job_id, who, text, wanted=Wanted.DRAINED)
                else:
                    await self.resume(job_id, who, "end of the drain")
            except Conflict:  # it ended, or was canceled, in between
                continue
        self._wake()
        return job_ids

    # ---- inside

    async def _change(self, job_id: str, who: Principal, action: str, reason: str, change: Change) -> Job:
        def write(session: Session) -> Job:
            job = require(session, job_id)
            before, version = standing(job), job.version
            now = self._store.clock()
            change(session, job, now)
            if job.version != version:
                audit(
                    session,
                    actor=who.name,
                    action=action,
                    job_id=job_id,
                    before=before,
                    after=standing(job),
                    reason=reason,
                    now_s=now,
                )
            return job

        job = await self._store.write(write)
        self._wake()
        return job


def require(session: Session, job_id: str) -> Job:
    """The job's row.

    Raises:
        NotFound: there is none.
    """
    job = load(session, job_id)
    if job is None:
        raise missing_job(job_id)
    return job


def _by(what: str, who: Principal, reason: str) -> str:
    return f"{what} by {who.name}" + (f": {reason}" if reason else "")


def _remove_own_run(settings: Settings, job_id: str) -> None:
    """Runs in the service's own folder end with their job; what lies in a user's storage is the user's."""
    if settings.storage is None:
        shutil.rmtree(Path(settings.runs_storage) / job_id, ignore_errors=True)
