"""What operators ask of a schedule: checked, stored with the revision that it was decided on, then queued.

A command waits in its queue until a report carries it into a plan; `core` alone says what it does there.
Whoever steers names the revision that he has seen (``If-Match``): of fifty who saw the same, one wins.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from hdet_ray.core.overrides import Freeze, Override, Removal, SetBounds
from hdet_ray.core.state import ScheduleState
from hdet_ray.core.steering import check_override, fold_commands
from hdet_ray.exceptions import OverrideError
from hdet_ray.train.protocol import Command
from hdet_service import command_rows as queue
from hdet_service.auth import Principal
from hdet_service.events import record
from hdet_service.exchange import Standing
from hdet_service.metrics import OVERRIDES, OverrideResult, add_counts, one
from hdet_service.override_rows import as_json
from hdet_service.preview import applies_at, asked, preview
from hdet_service.problems import Conflict, Invalid, NotFound, PreconditionFailed, PreconditionRequired
from hdet_service.run_rows import read_standing, require_job
from hdet_service.states import TERMINAL, State
from hdet_service.store.database import Store
from hdet_service.store.models import Job, OverrideRow
from hdet_service.transitions import audit

_ETAG = re.compile(r'(?:W/)?"([0-9]{1,18})"')


@dataclass(frozen=True, slots=True, kw_only=True)
class _Steered:
    """A schedule that an operator may change now."""

    job: Job
    standing: Standing
    waiting: tuple[Command, ...]

    @property
    def state(self) -> ScheduleState:
        """With everything that waits already received: what a new command will meet."""
        return fold_commands(self.standing.state, self.waiting)


class Steering:
    """Operators' side of a run.

    Args:
        store: The database.
        clock: Seconds since the epoch, UTC.
    """

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock

    async def override(
        self,
        job_id: str,
        body: Mapping[str, Any],
        *,
        if_match: str | None,
        who: Principal,
        dry_run: bool = False,
    ) -> tuple[dict[str, Any], int]:
        """Queue an override, or say what it would change.

        Args:
            job_id: Whose schedule.
            body: ``hparam``, ``op``, ``value``, and what else an override has; ``reason`` for people.
            if_match: ETag of the schedule that the operator has seen; may be left out of a preview.
            who: The operator.
            dry_run: Store nothing.

        Returns:
            The override (or the preview), and the schedule's revision now.

        Raises:
            NotFound: no such job.
            Conflict: the job has ended, or no worker has told its schedule yet.
            Invalid: unknown hyperparameter or group, or a value outside the bounds.
            PreconditionRequired: no ``if_match``.
            PreconditionFailed: the schedule was changed since.
        """
        override_id = self._store.new_id()

        def read(session: Session) -> tuple[dict[str, Any], int]:
            steered = _steer(session, job_id, if_match, needs_match=False)
            override = _checked(steered, override_id, body)
            told = preview(steered.standing, steered.waiting, override)
            told["override"]["reason"] = str(body.get("reason") or "")
            return {**told, "revision": steered.job.revision}, steered.job.revision

        def write(session: Session) -> tuple[dict[str, Any], int]:
            steered = _steer(session, job_id, if_match)
            override = _checked(steered, override_id, body)
            row = self._queue_override(session, steered, override, str(body.get("reason") or ""), who)
            at_round = applies_at(steered.state, override)
            return {**as_json(row), "applies_at_round": at_round}, steered.job.revision

        return await (self._store.read(read) if dry_run else self._store.write(write))

    async def remove(
        self, job_id: str, override_id: str, *, if_match: str | None, who: Principal, reason: str = ""
    ) -> tuple[dict[str, Any], int]:
        """Take an override back: at once where it still waits, else at the next boundary. Twice is once.

        Raises:
            NotFound: no such job or override.
            Conflict: it has expired or was refused, or the job has ended.
            PreconditionFailed: the schedule was changed since ``if_match`` (which may be left out).
        """

        def write(session: Session) -> tuple[dict[str, Any], int]:
            row = find_override(session, job_id, override_id)
            if row.state == "removed":
                return as_json(row), require_job(session, job_id).revision
            steered = _steer(session, job_id, if_match, needs_match=False)
            if row.state not in ("pending", "applied"):
                raise Conflict(f"override {override_id} is {row.state}: there is nothing to take back")
            if not queue.waits(session, job_id, Removal(id=override_id)):
                self._remove(session, steered, row, who, reason)
            return as_json(row), steered.job.revision

        return await self._store.write(write)

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
        """Freeze the controller for a hyperparameter, let it go on, or bound it; from the next round on.

        Raises:
            As `override`.
        """

        def write(session: Session) -> tuple[dict[str, Any], int]:
            steered = _steer(session, job_id, if_match)
            before = _auto_of(steered.state, hparam)
            commands = _auto_commands(steered.state, hparam, frozen, bounds)
            after = fold_commands(steered.state, commands)
            now_s = self._clock()
            for command in commands:
                queue.add(session, job_id, command, now_s)
            _change(session, steered.job, who, "patch_auto", before, _auto_of(after, hparam), reason, now_s)
            return {**_auto_of(after, hparam), "applies_at_round": after.round + 1}, steered.job.revision

        return await self._store.write(write)

    def _queue_override(
        self, session: Session, steered: _Steered, override: Override, reason: str, who: Principal
    ) -> OverrideRow:
        now_s = self._clock()
        body = {**asked(override), "reason": reason}
        row = OverrideRow(
            id=override.id,
            job_id=steered.job.id,
            body=body,
            state="pending",
            applied_round=None,
            refusal="",
            created_by=who.name,
            created_s=now_s,
            updated_s=now_s,
        )
        session.add(row)
        queue.add(session, steered.job.id, override, now_s, override_id=override.id)
        told = {"id": row.id, "state": "pending", "applied_round": None, "refusal": "", **body}
        record(session, steered.job.id, "override", told, now_s)
        add_counts(session, steered.job.id, one(OVERRIDES, OverrideResult.ACCEPTED))
        _change(session, steered.job, who, "override", None, {"id": row.id, **body}, reason, now_s)
        return row

    def _remove(
        self, session: Session, steered: _Steered, row: OverrideRow, who: Principal, reason: str
    ) -> None:
        now_s = self._clock()
        if queue.drop_waiting(session, row.id):
            row.state, row.updated_s = "removed", now_s
            told = {"id": row.id, "state": "removed", "applied_round": row.applied_round, "refusal": ""}
            record(session, row.job_id, "override", told, now_s)
        else:
            queue.add(session, row.job_id, Removal(id=row.id), now_s, override_id=row.id)
        before = {"id": row.id, **row.body}
        _change(session, steered.job, who, "remove_override", before, None, reason, now_s)


def find_override(session: Session, job_id: str, override_id: str) -> OverrideRow:
    """The override's row.

    Raises:
        NotFound: the job has none of this id.
    """
    row = session.scalars(
        select(OverrideRow).where(OverrideRow.id == override_id, OverrideRow.job_id == job_id)
    ).one_or_none()
    if row is None:
        raise NotFound(f"job {job_id} has no override {override_id!r}")
    return row


def _steer(session: Session, job_id: str, if_match: str | None, *, needs_match: bool = True) -> _Steered:
    job = require_job(session, job_id)
    if State(job.state) in TERMINAL:
        raise Conflict(f"job {job_id} is {job.state}: its schedule is history and takes no changes")
    _check_revision(job, if_match, needs_match=needs_match)
    standing = read_standing(job)
    if standing is None:
        raise Conflict(
            f"job {job_id} is {job.state} and no worker has opened its run yet, so there is no schedule to "
            "change; wait for RUNNING"
        )
    return _Steered(job=job, standing=standing, waiting=queue.waiting(session, job_id))


def _check_revision(job: Job, if_match: str | None, *, needs_match: bool) -> None:
    if if_match is None:
        if needs_match:
            raise PreconditionRequired(
                "a change of the schedule needs If-Match with the ETag that it was decided on; "
                f"GET /v1/jobs/{job.id}/schedule gives it"
            )
        return
    if if_match.strip() == "*":
        return
    if str(job.revision) not in _ETAG.findall(if_match):
        raise PreconditionFailed(
            f"If-Match {if_match[:100]} is not the schedule's revision {job.revision}: somebody changed it "
            "since; read it again and decide anew"
        )


def _checked(steered: _Steered, override_id: str, body: Mapping[str, Any]) -> Override:
    fields = ("hparam", "op", "group", "apply_at_round", "expires_after_rounds")
    given = {name: body[name] for name in fields if body.get(name) is not None}
    state = steered.state
    try:
        override = Override(id=override_id, value=float(body["value"]), **given)
        check_override(state, override)
    except OverrideError as error:
        raise Invalid(str(error), errors=[{"field": _field(state, body), "message": str(error)}]) from error
    return override


def _field(state: ScheduleState, body: Mapping[str, Any]) -> str:
    """Which field of an override is to blame."""
    if not state.keys_of(str(body["hparam"]), None):
        return "hparam"
    return "value" if state.keys_of(str(body["hparam"]), body.get("group")) else "group"


def _auto_commands(
    state: ScheduleState, hparam: str, frozen: bool | None, bounds: Sequence[float] | None
) -> list[Command]:
    commands: list[Command] = []
    try:
        if bounds:
            commands.append(SetBounds(hparam=hparam, low=float(bounds[0]), high=float(bounds[1])))
        if frozen is not None:
            commands.append(Freeze(hparam=hparam, is_frozen=frozen))
    except OverrideError as error:
        raise Invalid(str(error), errors=[{"field": "bounds", "message": str(error)}]) from error
    if not commands:
        raise Invalid("neither frozen nor bounds is given: nothing would change; give one of them")
    for command in commands:
        # Refused ones leave a note; what the run would only log is a caller's mistake here.
        refusals = fold_commands(state, [command]).notes[len(state.notes) :]
        if refusals:
            field = "bounds" if isinstance(command, SetBounds) and state.keys_of(hparam, None) else "hparam"
            raise Invalid(refusals[0], errors=[{"field": field, "message": refusals[0]}])
    return commands


def _auto_of(state: ScheduleState, hparam: str) -> dict[str, Any]:
    bounds = [list(state.bounds[key]) for key in state.keys_of(hparam, None)]
    return {"hparam": hparam, "frozen": hparam in state.frozen, "bounds": bounds[0] if bounds else None}


def _change(
    session: Session,
    job: Job,
    who: Principal,
    action: str,
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any] | None,
    reason: str,
    now_s: float,
) -> None:
    """Bump the revision and leave the audit, in the same write."""
    job.revision += 1
    audit(
        session,
        actor=who.name,
        action=action,
        job_id=job.id,
        before=before,
        after=after,
        reason=reason,
        now_s=now_s,
    )
