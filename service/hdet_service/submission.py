"""Submission: a spec becomes a row in the queue, once per idempotency key.

The key, the job and its first transition are one write, so any number of callers with one key make one job.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from hdet_service.admission import Waiting, position
from hdet_service.auth import Principal
from hdet_service.job_rows import is_draining
from hdet_service.launches import MAX_VARIABLE_BYTES, environment_bytes, storage_path
from hdet_service.problems import Forbidden, IdempotencyMismatch, Invalid
from hdet_service.schemas import JobSpec
from hdet_service.settings import Settings
from hdet_service.states import ACTIVE, Reason, State
from hdet_service.store.models import Idempotency, Job, JobLabel, Package
from hdet_service.transitions import audit, enter, standing


@dataclass(frozen=True, slots=True)
class Admission:
    """How full the cluster is."""

    num_running: int
    max_running: int
    queue: tuple[Waiting, ...]
    is_draining: bool


@dataclass(frozen=True, slots=True)
class Submission:
    """What is asked for, and by whom."""

    spec: JobSpec
    who: Principal
    idempotency_key: str | None
    body_digest: str

    def store(self, session: Session, job_id: str, now: float) -> tuple[Job, bool]:
        """The job that stands for it, and whether it is new.

        Raises:
            Invalid: a package that was never uploaded.
            IdempotencyMismatch: the key was used with another body.
        """
        key = None if self.idempotency_key is None else (self.who.name, self.idempotency_key)
        first = None if key is None else session.get(Idempotency, key)
        if first is not None:
            return _first_answer(session, first, self.body_digest), False
        check_package(session, self.spec, now)
        job = new_job(job_id, self.spec, self.who, now)
        session.add(job)
        session.flush()
        session.add_all(JobLabel(job_id=job_id, key=k, value=v) for k, v in self.spec.labels.items())
        if key is not None:
            owner, name = key
            session.add(
                Idempotency(owner=owner, key=name, body_digest=self.body_digest, job_id=job_id, at_s=now)
            )
        enter(session, job, State.QUEUED, Reason.SUBMITTED, f"Submitted by {self.who.name}", now)
        audit(
            session,
            actor=self.who.name,
            action="submit",
            job_id=job_id,
            before=None,
            after={**standing(job), "name": self.spec.name, "entrypoint": self.spec.entrypoint},
            reason="",
            now_s=now,
        )
        return job, True


def preview_of(spec: JobSpec, who: Principal, now: Admission, settings: Settings) -> dict[str, Any]:
    """What a submission would do."""
    ahead = position(now.queue, priority=spec.priority)
    starts_now = not now.is_draining and now.num_running + ahead < now.max_running
    workers = spec.replicas.max * spec.replicas.ranks_per_replica
    return {
        "name": spec.name,
        "owner": who.name,
        "entrypoint": spec.entrypoint,
        "entrypoint_kind": spec.entrypoint_kind,
        "workers": workers,
        "replicas": spec.replicas.max,
        "cpus": workers * spec.replicas.cpus_per_rank,
        "gpus": workers * spec.replicas.gpus_per_rank,
        "storage_path": storage_path(spec, settings),
        "state": State.QUEUED.value,
        "reason": (Reason.SUBMITTED if starts_now else Reason.WAITING_FOR_SLOT).value,
        "queue": {
            "ahead": ahead,
            "running": now.num_running,
            "max_running": now.max_running,
            "draining": now.is_draining,
        },
        "spec": spec.to_json(),
    }


def check_entrypoint(spec: JobSpec, settings: Settings) -> None:
    """The allowlist lets it.

    Raises:
        Forbidden: it does not.
    """
    allowed = settings.entrypoint_allowlist
    if allowed and not any(fnmatchcase(spec.entrypoint, pattern) for pattern in allowed):
        raise Forbidden(
            f"entrypoint {spec.entrypoint[:200]!r} is not on this service's list: {', '.join(allowed)}"
        )


def check_environment(spec: JobSpec, who: Principal, settings: Settings) -> None:
    """A job's processes can be started with what they are told by their environment.

    Raises:
        Invalid: it is too long; says by how much.
    """
    size = environment_bytes(new_job("0" * 26, spec, who, 0.0), spec, settings)
    if size > MAX_VARIABLE_BYTES:
        raise Invalid(
            f"config and env_vars make {size} bytes once Ray has quoted them; at most {MAX_VARIABLE_BYTES} "
            "reach a process: put data into the package or into storage and name it here",
            errors=[{"field": "config", "message": "too long together with runtime_env.env_vars"}],
        )


def check_package(session: Session, spec: JobSpec, used_s: float | None = None) -> None:
    """A package is there; with ``used_s``, it counts as used then.

    Raises:
        Invalid: it was never uploaded.
    """
    if spec.package is None:
        return
    package = session.get(Package, spec.package)
    if package is None:
        text = (
            f"package {spec.package} was never uploaded, or is gone since nobody used it for long; "
            f"PUT /v1/packages/{spec.package} first"
        )
        raise Invalid(text, errors=[{"field": "runtime_env.working_dir", "message": "never uploaded"}])
    if used_s is not None:
        package.used_s = used_s


def read_admission(session: Session, settings: Settings) -> Admission:
    """Slots and queue, inside a read or a write."""
    states = [state.value for state in (*ACTIVE, State.QUEUED)]
    rows = session.execute(
        select(Job.id, Job.state, Job.priority, Job.not_before_s).where(Job.state.in_(states))
    ).all()
    return Admission(
        num_running=sum(state != State.QUEUED for _, state, _, _ in rows),
        max_running=settings.max_running_jobs,
        queue=tuple(
            Waiting(id=id, priority=priority, not_before_s=not_before_s)
            for id, state, priority, not_before_s in rows
            if state == State.QUEUED
        ),
        is_draining=is_draining(session),
    )


def new_job(job_id: str, spec: JobSpec, who: Principal, now: float) -> Job:
    return Job(
        id=job_id,
        name=spec.name,
        owner=who.name,
        spec=spec.to_json(),
        state=State.QUEUED.value,
        reason=Reason.SUBMITTED.value,
        message="",
        priority=spec.priority,
        created_s=now,
        updated_s=now,
        version=0,
        submission=0,
        failures=0,
        attempt=0,
        round=0,
        step=0,
        replicas_present=0,
        revision=0,
    )


def _first_answer(session: Session, first: Idempotency, body_digest: str) -> Job:
    if first.body_digest != body_digest:
        raise IdempotencyMismatch(
            f"the key {first.key!r} was used with another body; take a new key for another job"
        )
    return session.get_one(Job, first.job_id)
