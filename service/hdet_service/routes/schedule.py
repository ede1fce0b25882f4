"""The schedule of a job: seen, previewed, steered."""

from __future__ import annotations

import contextlib
import json
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from hdet_service.access import Operator, Reader
from hdet_service.api_models import (
    HistoryPage,
    JobAnswer,
    OverrideAnswer,
    OverridePreview,
    ScheduleAnswer,
    SteeringAnswer,
)
from hdet_service.describing import (
    ETAG_HEADER,
    IF_MATCH,
    OPTIONAL_IF_MATCH,
    Good,
    described,
    json_body,
)
from hdet_service.examples import JOB, OVERRIDE
from hdet_service.job_view import job_view
from hdet_service.ownership import changeable, readable
from hdet_service.paging import PageQuery, page_limit, page_start
from hdet_service.problems import ServiceError
from hdet_service.reading import QueryBool, body, optional_if_match, query, query_int, required_if_match
from hdet_service.schemas import MAX_COUNT, AutoPatch, OverrideBody, Reason, RollbackBody, Strict

router = APIRouter(prefix="/v1", tags=["schedule"])

_NEW_ETAG = {"ETag": "Of the schedule as it is now: for the next change."}


class HistoryQuery(PageQuery):
    """Which part of the ledger."""

    from_round: query_int(0, MAX_COUNT) | None = None  # type: ignore[valid-type]
    """Where not given: the round that the ledger starts with. Rounds before it are summaries (`thinned`)."""
    all_attempts: QueryBool = False
    """Abandoned rounds too."""


class OverrideQuery(Strict):
    """How it is asked for."""

    dry_run: QueryBool = False
    """Only say what would change."""


class RemovalQuery(Strict):
    """Why it is taken back."""

    reason: Reason = ""
    """For people; kept in the audit."""


@router.get(
    "/jobs/{job_id}/schedule",
    **described(
        "The schedule as it stands",
        good=[Good(description="The schedule", model=ScheduleAnswer, headers=ETAG_HEADER)],
        also=[404, 409],
    ),
)
async def read_schedule(request: Request, job_id: str, who: Reader) -> Response:
    """The ETag is the operators' revision: rounds move on without changing it. 409 before a worker opened
    the run."""
    await readable(request, job_id, who)
    schedule = await request.app.state.controller.runs.schedule(job_id)
    return JSONResponse(schedule, headers=_etag(schedule["revision"]))


@router.get(
    "/jobs/{job_id}/schedule/history",
    **described(
        "The ledger",
        good=[Good(description="A page of rounds, oldest first", model=HistoryPage)],
        also=[400, 404],
        query=HistoryQuery,
    ),
)
async def read_history(
    request: Request, job_id: str, who: Reader, asked: Annotated[HistoryQuery, Depends(query(HistoryQuery))]
) -> Response:
    """Each item is a line of the ledger; `hdet replay` decides every round anew and compares."""
    await readable(request, job_id, who)
    scope = f"history {job_id} {asked.all_attempts}"
    limit = page_limit(request, asked)
    start = page_start(request, asked, scope, int)
    found = await request.app.state.controller.runs.history(
        job_id,
        from_round=asked.from_round if start is None else start,
        limit=limit,
        all_attempts=asked.all_attempts,
    )
    following = found.next_round
    following = None if following is None else request.app.state.cursors.write(scope, following)
    head = json.dumps({"start": found.start, "next": following}, allow_nan=False)
    # Lines go out as they were written: none is parsed and written anew.
    content = f'{head[:-1]}, "items": [{", ".join(found.lines)}]}}'
    return Response(content, media_type="application/json")


@router.post(
    "/jobs/{job_id}/schedule/overrides",
    **described(
        "Change a value by hand",
        good=[
            Good(
                status=202,
                description="It is stored, and applies at a boundary or is refused with the reason",
                model=OverrideAnswer,
                headers={**_NEW_ETAG, "Location": "Where its state is read."},
            ),
            Good(status=200, description="What would change", model=OverridePreview, headers=_NEW_ETAG),
        ],
        also=[404, 409, 412, 428],
        body=json_body("Override", OVERRIDE),
        query=OverrideQuery,
        parameters=[IF_MATCH],
    ),
)
async def add_override(
    request: Request,
    job_id: str,
    who: Operator,
    asked: Annotated[OverrideQuery, Depends(query(OverrideQuery))],
    given: Annotated[Any, Depends(body(OverrideBody))],
) -> Response:
    """`If-Match` names the schedule that the decision was taken on: 412 if somebody changed it since."""
    if_match = required_if_match(request)
    await changeable(request, job_id, who)
    answer, revision = await request.app.state.controller.runs.override(
        job_id, given.model_dump(), if_match=if_match, who=who, dry_run=asked.dry_run
    )
    headers = _etag(revision)
    if asked.dry_run:
        return JSONResponse(answer, headers=headers)
    headers["Location"] = f"/v1/jobs/{job_id}/schedule/overrides/{answer['id']}"
    return JSONResponse(answer, status_code=202, headers=headers)


@router.get(
    "/jobs/{job_id}/schedule/overrides/{override_id}",
    **described(
        "What became of an override",
        good=[Good(description="The override", model=OverrideAnswer)],
        also=[404],
    ),
)
async def read_override(request: Request, job_id: str, override_id: str, who: Reader) -> Response:
    """`applied` only once a report has confirmed it on every replica."""
    await readable(request, job_id, who)
    return JSONResponse(await request.app.state.controller.runs.override_get(job_id, override_id))


@router.delete(
    "/jobs/{job_id}/schedule/overrides/{override_id}",
    **described(
        "Take an override back",
        good=[
            Good(
                status=202,
                description="It ends at the next boundary",
                model=OverrideAnswer,
                headers=_NEW_ETAG,
            )
        ],
        also=[404, 409, 412, 422],
        query=RemovalQuery,
        parameters=[OPTIONAL_IF_MATCH],
    ),
)
async def remove_override(
    request: Request,
    job_id: str,
    override_id: str,
    who: Operator,
    asked: Annotated[RemovalQuery, Depends(query(RemovalQuery))],
) -> Response:
    """Pending or in force; 409 for one that is over."""
    await changeable(request, job_id, who)
    answer, revision = await request.app.state.controller.runs.override_remove(
        job_id, override_id, if_match=optional_if_match(request), who=who, reason=asked.reason
    )
    return JSONResponse(answer, status_code=202, headers=_etag(revision))


@router.post(
    "/jobs/{job_id}/schedule/rollback",
    **described(
        "Back to a round",
        good=[Good(status=202, description="A new attempt starts from there", model=JobAnswer, example=JOB)],
        also=[404, 409],
        body=json_body("Rollback", {"round": 12, "reason": "the rate was too high"}),
    ),
)
async def roll_back(
    request: Request,
    job_id: str,
    who: Operator,
    given: Annotated[RollbackBody, Depends(body(RollbackBody))],
) -> Response:
    """Schedule and checkpoint of that round; 409 where it has no checkpoint. It is kept until the next
    rollback, since the run prunes its own until it has stopped."""
    controller, storage = request.app.state.controller, request.app.state.storage
    job = await changeable(request, job_id, who)
    async with storage.rolling_back:
        saved = await storage.checkpoint(job.storage_path, given.round)
        is_new = await storage.pin(job.storage_path, saved)
        try:
            rolled_back = await controller.jobs.rollback(job_id, given.round, who, given.reason)
        except ServiceError:
            if is_new:
                await storage.unpin(job.storage_path, saved)
            raise
        with contextlib.suppress(ServiceError):  # it is done; what stays goes with the next one
            await storage.unpin_others(job.storage_path, saved)
    return JSONResponse(job_view(rolled_back), status_code=202)


@router.patch(
    "/jobs/{job_id}/schedule/auto",
    **described(
        "Freeze, let go on, or bound the controller",
        good=[
            Good(
                status=202,
                description="It is stored, and holds from the next boundary on",
                model=SteeringAnswer,
                headers=_NEW_ETAG,
            )
        ],
        also=[404, 409, 412],
        body=json_body("AutoPatch", {"hparam": "lr", "frozen": True}),
        parameters=[OPTIONAL_IF_MATCH],
    ),
)
async def patch_auto(
    request: Request,
    job_id: str,
    who: Operator,
    given: Annotated[AutoPatch, Depends(body(AutoPatch))],
) -> Response:
    """Per hyperparameter."""
    await changeable(request, job_id, who)
    answer, revision = await request.app.state.controller.runs.patch_auto(
        job_id,
        given.hparam,
        frozen=given.frozen if "frozen" in given.model_fields_set else None,
        bounds=(given.bounds[0], given.bounds[1]) if given.bounds else None,
        if_match=optional_if_match(request) or "*",
        who=who,
        reason=given.reason,
    )
    return JSONResponse(answer, status_code=202, headers=_etag(revision))


def _etag(revision: int) -> dict[str, str]:
    return {"ETag": f'"{revision}"'}
