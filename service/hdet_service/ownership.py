"""Whose job it is: a job that a caller may not read is answered as one that isn't there."""

from __future__ import annotations

from fastapi import Request

from hdet_service.auth import Principal
from hdet_service.problems import missing_job
from hdet_service.store.models import Job


async def readable(request: Request, job_id: str, who: Principal) -> Job:
    """The job, if the caller may read it.

    Raises:
        NotFound: absent, or another's.
    """
    job: Job = await request.app.state.controller.jobs.get(job_id)
    if not who.may_read(job.owner):
        raise missing_job(job_id)
    return job


async def changeable(request: Request, job_id: str, who: Principal) -> Job:
    """The job, if the caller may end, pause or delete it; the role was checked before.

    Raises:
        NotFound: absent, or another's.
    """
    job: Job = await request.app.state.controller.jobs.get(job_id)
    if not who.may_change(job.owner):
        raise missing_job(job_id)
    return job
