"""Jobs: submit, list, read, end."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field, StringConstraints
from sqlalchemy import select

from hdet_service.access import Changer, Reader
from hdet_service.api_models import JobAnswer, JobDetail, JobPage, JobPreview, ReplicaPage
from hdet_service.describing import (
    ETAG_HEADER,
    IDEMPOTENCY_KEY,
    IF_NONE_MATCH,
    Good,
    described,
    json_body,
)
from hdet_service.examples import JOB, SPEC
from hdet_service.job_view import job_detail, job_view
from hdet_service.ownership import changeable, readable
from hdet_service.paging import PageQuery, page, page_limit, page_start
from hdet_service.problems import IdempotencyInFlight
from hdet_service.reading import QueryBool, body, etags, idempotency_key, query
from hdet_service.schemas import Action, JobSpec, Strict
from hdet_service.states import State
from hdet_service.store.models import Transition

router = APIRouter(prefix="/v1", tags=["jobs"])

_LABEL = r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}=[A-Za-z0-9._/-]{0,63}$"


class JobsQuery(PageQuery):
    """Filters of the list."""

    state: Annotated[list[Annotated[State, Field(strict=False)]], Field(max_length=9)] = Field(
        default_factory=list
    )
    """In one of these states."""
    label: Annotated[list[Annotated[str, StringConstraints(pattern=_LABEL)]], Field(max_length=16)] = Field(
        default_factory=list
    )
    """With all of these labels, as `key=value`."""


class SubmitQuery(Strict):
    """How it is submitted."""

    dry_run: QueryBool = False
    """Only say what would happen."""


@router.post(
    "/jobs",
    **described(
        "Submit a job",
        good=[
            Good(
                status=201,
                description="It is queued",
                model=JobAnswer,
                example=JOB,
                headers={"Location": "Where the job is read."},
            ),
            Good(
                status=200,
                description="The first answer to this key, or the preview",
                model=JobAnswer | JobPreview,
            ),
        ],
        also=[409],
        body=json_body("JobSpec", SPEC),
        query=SubmitQuery,
        parameters=[IDEMPOTENCY_KEY],
    ),
)
async def submit_job(
    request: Request,
    who: Changer,
    asked: Annotated[SubmitQuery, Depends(query(SubmitQuery))],
    key: Annotated[str | None, Depends(idempotency_key)],
    spec: Annotated[JobSpec, Depends(body(JobSpec))],
) -> Response:
    """Submitting runs code on the cluster with the rights of its processes.

    With `Idempotency-Key`, the same key and body get the first answer with 200; another body gets 422, and
    409 says that the first call is still being answered.
    """
    jobs = request.app.state.controller.jobs
    if asked.dry_run:
        return JSONResponse(await jobs.preview(spec, who))
    with _answering(request, who.name, key):
        job, is_new = await jobs.submit(spec, who, key, request.state.body_digest)
    return JSONResponse(
        job_view(job), status_code=201 if is_new else 200, headers={"Location": f"/v1/jobs/{job.id}"}
    )


@contextmanager
def _answering(request: Request, owner: str, key: str | None) -> Iterator[None]:
    """Holds an idempotency key while its first call is answered.

    Raises:
        IdempotencyInFlight: it is held.
    """
    held: set[tuple[str, str | None]] = request.app.state.keys_in_flight
    if key is not None and (owner, key) in held:
        raise IdempotencyInFlight(
            f"the first call with the key {key!r} is still being answered; repeat this one in a moment"
        )
    held.add((owner, key))
    try:
        yield
    finally:
        held.discard((owner, key))


@router.get(
    "/jobs",
    **described(
        "List jobs, newest first",
        good=[Good(description="A page", model=JobPage, example={"items": [JOB], "next": None})],
        also=[400],
        query=JobsQuery,
    ),
)
async def list_jobs(
    request: Request, who: Reader, asked: Annotated[JobsQuery, Depends(query(JobsQuery))]
) -> Response:
    """A submitter sees its own."""
    labels = dict(label.split("=", 1) for label in asked.label)
    scope = json.dumps(["jobs", sorted(asked.state), sorted(asked.label)])
    limit = page_limit(request, asked)
    rows = await request.app.state.controller.jobs.list(
        states=asked.state,
        labels=labels,
        owner=None if who.sees_all_jobs else who.name,
        before_id=page_start(request, asked, scope, str),
        limit=limit + 1,
    )
    return JSONResponse(page(request, rows, limit, scope, lambda job: job.id, job_view))


@router.get(
    "/jobs/{job_id}",
    **described(
        "Read a job",
        good=[
            Good(description="The job", model=JobDetail, headers=ETAG_HEADER),
            Good(status=304, description="Still what `If-None-Match` names", headers=ETAG_HEADER),
        ],
        also=[404],
        parameters=[IF_NONE_MATCH],
    ),
)
async def read_job(request: Request, job_id: str, who: Reader) -> Response:
    """Spec, state, progress, replicas, links."""
    job = await readable(request, job_id, who)
    statement = select(Transition).where(Transition.job_id == job_id).order_by(Transition.id)
    transitions = await request.app.state.controller.store.read(lambda s: list(s.scalars(statement)))
    return tagged(request, job_detail(job, transitions))


def tagged(request: Request, content: Any) -> Response:
    """An answer with the ETag of its content, or 304."""
    response = JSONResponse(content)
    tag = hashlib.sha256(response.body).hexdigest()[:32]
    known = etags(request.headers.get("if-none-match"), accepts_weak=True) or frozenset()
    if known & {tag, "*"}:
        return Response(status_code=304, headers={"ETag": f'"{tag}"'})
    response.headers["ETag"] = f'"{tag}"'
    return response


def _action(verb: str, description: str, also: tuple[int, ...] = ()) -> dict[str, Any]:
    return described(
        f"{verb} a job",
        good=[Good(status=202, description=description, model=JobAnswer, example=JOB)],
        also=[404, *also],
        body=json_body("Action", {"reason": "the loss is flat"}, is_required=False),
    )


Given = Annotated[Action, Depends(body(Action, is_optional=True))]


@router.post("/jobs/{job_id}/cancel", **_action("Cancel", "It stops, or had ended"))
async def cancel_job(request: Request, job_id: str, who: Changer, given: Given) -> Response:
    """Twice is once; a job that has ended stays as it ended."""
    await changeable(request, job_id, who)
    job = await request.app.state.controller.jobs.cancel(job_id, who, given.reason)
    return JSONResponse(job_view(job), status_code=202)


@router.post("/jobs/{job_id}/pause", **_action("Pause", "It saves a checkpoint, then stops", (409,)))
async def pause_job(request: Request, job_id: str, who: Changer, given: Given) -> Response:
    """409 for a job that has ended."""
    await changeable(request, job_id, who)
    job = await request.app.state.controller.jobs.pause(job_id, who, given.reason)
    return JSONResponse(job_view(job), status_code=202)


@router.post("/jobs/{job_id}/resume", **_action("Resume", "It waits for a slot", (409,)))
async def resume_job(request: Request, job_id: str, who: Changer, given: Given) -> Response:
    """It goes on from its newest checkpoint; 409 for a job that has ended or is still stopping."""
    await changeable(request, job_id, who)
    job = await request.app.state.controller.jobs.resume(job_id, who, given.reason)
    return JSONResponse(job_view(job), status_code=202)


@router.delete(
    "/jobs/{job_id}",
    **described(
        "Delete a job that has ended",
        good=[Good(status=204, description="It and its logs are gone")],
        also=[404, 409],
    ),
)
async def delete_job(request: Request, job_id: str, who: Changer) -> Response:
    """409 for one that has not ended; the audit keeps that it was there."""
    await changeable(request, job_id, who)
    await request.app.state.controller.jobs.delete(job_id, who)
    return Response(status_code=204)


@router.get(
    "/jobs/{job_id}/replicas",
    **described(
        "Each replica's newest report",
        good=[Good(description="Replicas by number", model=ReplicaPage)],
        also=[404],
    ),
)
async def read_replicas(request: Request, job_id: str, who: Reader) -> Response:
    """Empty before the first report."""
    await readable(request, job_id, who)
    replicas = await request.app.state.controller.runs.replicas(job_id)
    return JSONResponse({"items": list(replicas), "next": None})
