"""A job as JSON: read off its row, nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from hdet_service.store.models import Job, Transition


def job_view(job: Job) -> dict[str, Any]:
    """A job as lists show it."""
    spec = job.spec
    return {
        "id": job.id,
        "name": job.name,
        "owner": job.owner,
        "state": job.state,
        "reason": job.reason,
        "message": job.message,
        "attempt": job.attempt,
        "submission": job.submission,
        "failures": job.failures,
        "priority": job.priority,
        "labels": spec.get("labels", {}),
        "progress": progress(job),
        "replicas": {"wanted": spec["replicas"]["max"], "present": job.replicas_present},
        "links": links(job.id),
        "created_at": rfc3339(job.created_s),
        "updated_at": rfc3339(job.updated_s),
        "started_at": rfc3339(job.started_s),
        "finished_at": rfc3339(job.finished_s),
    }


def job_detail(job: Job, transitions: Sequence[Transition]) -> dict[str, Any]:
    """A job with its spec and its states so far."""
    return {
        **job_view(job),
        "spec": job.spec,
        "transitions": [
            {"state": t.state, "reason": t.reason, "message": t.message, "at": rfc3339(t.at_s)}
            for t in transitions
        ],
    }


def progress(job: Job) -> dict[str, Any]:
    """Steps done and to do; `null` where that is not known yet."""
    eta_s = None
    if job.total_steps is not None and job.steps_per_s:
        eta_s = max(0, job.total_steps - job.step) / job.steps_per_s
    return {
        "step": job.step,
        "total_steps": job.total_steps,
        "steps_per_s": job.steps_per_s,
        "eta_s": eta_s,
    }


def links(job_id: str) -> dict[str, str]:
    """Where more is."""
    base = f"/v1/jobs/{job_id}"
    return {
        "self": base,
        **{name: f"{base}/{name}" for name in ("replicas", "checkpoints", "events", "logs", "schedule")},
        "history": f"{base}/schedule/history",
    }


def rfc3339(at_s: float | None) -> Any:
    """A time as RFC 3339 has it, UTC, milliseconds; None stays None."""
    if at_s is None:
        return None
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
