"""Events and output of a job: pages, or streams that go on where they were cut."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from hdet_service import sse
from hdet_service.access import Reader
from hdet_service.api_models import EventPage, LogPage
from hdet_service.describing import EVENT_STREAM, Good, Parameter, described
from hdet_service.events import as_dict
from hdet_service.examples import JOB_ID
from hdet_service.following import events_after, follow_events, follow_logs, is_log_final, log_item
from hdet_service.logs import LOG_START, LogPosition
from hdet_service.ownership import readable
from hdet_service.paging import PageQuery, page, page_limit, page_start
from hdet_service.reading import query

router = APIRouter(prefix="/v1", tags=["jobs"])

_ASKED = Annotated[PageQuery, Depends(query(PageQuery))]
_STREAM = {EVENT_STREAM: {"type": "string"}}

_EVENT = {
    "id": 7,
    "job_id": JOB_ID,
    "type": "state",
    "data": {"from": "STARTING", "state": "RUNNING", "reason": "Running", "message": "", "submission": 1},
    "at_s": 1795521600.25,
}


def _last_event_id(pattern: str, example: str) -> Parameter:
    return Parameter(
        name="Last-Event-ID",
        place="header",
        description="For a stream: the last id that arrived; it goes on right behind it.",
        schema={"type": "string", "pattern": pattern},
        example=example,
    )


@router.get(
    "/jobs/{job_id}/events",
    **described(
        "What happened to a job",
        good=[
            Good(
                description="A page, oldest first, or a stream that ends with the job",
                model=EventPage,
                example={"items": [_EVENT], "next": None},
                content=_STREAM,
            )
        ],
        also=[400, 404, 406],
        query=PageQuery,
        parameters=[_last_event_id(sse.EVENT_ID, "7")],
    ),
)
async def read_events(request: Request, job_id: str, who: Reader, asked: _ASKED) -> Response:
    """With `Accept: text/event-stream` a stream; the last event of it is named `end`."""
    is_stream = sse.wants_stream(request)
    after = sse.last_event_id(request)
    await readable(request, job_id, who)
    controller = request.app.state.controller
    if is_stream:
        chunks = follow_events(controller.store, controller.events, job_id, after)
        return sse.stream_response(request, who, chunks)
    scope = f"events {job_id}"
    limit = page_limit(request, asked)
    start = page_start(request, asked, scope, int) or 0
    rows = await controller.store.read(lambda session: events_after(session, job_id, start, limit + 1))
    return JSONResponse(page(request, rows, limit, scope, lambda event: event.id, as_dict))


@router.get(
    "/jobs/{job_id}/logs",
    **described(
        "What a job's processes wrote",
        good=[
            Good(
                description="A page of lines, oldest first, or a stream that ends with the job",
                model=LogPage,
                example={"items": [{"id": "1:42", "submission": 1, "line": "step 100"}], "next": None},
                content=_STREAM,
            )
        ],
        also=[400, 404, 406],
        query=PageQuery,
        parameters=[_last_event_id(sse.LOG_ID, "1:42")],
    ),
)
async def read_logs(request: Request, job_id: str, who: Reader, asked: _ASKED) -> Response:
    """They outlive the processes, the cluster's head and a restart of the service."""
    is_stream = sse.wants_stream(request)
    after = sse.last_log_position(request)
    await readable(request, job_id, who)
    controller = request.app.state.controller
    if is_stream:
        chunks = follow_logs(
            controller.store, controller.logs, job_id, after, lambda: controller.events.is_closed
        )
        return sse.stream_response(request, who, chunks)
    scope = f"logs {job_id}"
    limit = page_limit(request, asked)
    place = page_start(request, asked, scope, str)
    start = LOG_START if place is None else LogPosition.parse(place)
    is_final = await is_log_final(controller.store, job_id)
    lines = await asyncio.to_thread(controller.logs.read, job_id, start, limit=limit + 1, is_final=is_final)
    return JSONResponse(page(request, lines, limit, scope, lambda line: str(line.position), log_item))
