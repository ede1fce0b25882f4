"""Checkpoints of a job, and their weights."""

from __future__ import annotations

import os

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from hdet_service.access import Reader
from hdet_service.api_models import CheckpointPage
from hdet_service.describing import ROUND, Good, described
from hdet_service.examples import CHECKPOINT
from hdet_service.ownership import readable
from hdet_service.problems import Conflict, NotFound
from hdet_service.reading import path_number
from hdet_service.saved import chunks_of
from hdet_service.schemas import MAX_COUNT

router = APIRouter(prefix="/v1", tags=["jobs"])

_WEIGHTS = "application/octet-stream"


@router.get(
    "/jobs/{job_id}/checkpoints",
    **described(
        "Checkpoints of a job",
        good=[
            Good(
                description="All complete ones that are kept, oldest first",
                model=CheckpointPage,
                example={"items": [CHECKPOINT], "next": None},
            )
        ],
        also=[404],
    ),
)
async def read_checkpoints(request: Request, job_id: str, who: Reader) -> Response:
    """As they lie in the job's storage now."""
    job = await readable(request, job_id, who)
    found = await request.app.state.storage.checkpoints(job.storage_path)
    return JSONResponse({"items": [saved.to_json() for saved in found], "next": None})


@router.get(
    "/jobs/{job_id}/checkpoints/{round}/export",
    **described(
        "Weights of a checkpoint",
        good=[
            Good(
                description="A safetensors file: `safetensors.torch.load_file` reads it without us",
                content={_WEIGHTS: {"type": "string", "contentMediaType": _WEIGHTS}},
                headers={"Content-Disposition": "A name for the file."},
            )
        ],
        also=[404, 409, 422],
        parameters=[ROUND],
    ),
)
async def export_checkpoint(request: Request, job_id: str, who: Reader) -> Response:
    """404 for a round without a checkpoint; 409 for one that is damaged."""
    round = path_number(request, "round", MAX_COUNT)
    job = await readable(request, job_id, who)
    storage = request.app.state.storage
    try:
        saved = await storage.checkpoint(job.storage_path, round)
    except Conflict as error:
        raise NotFound(error.detail) from error
    file = await storage.weights(saved)
    return StreamingResponse(
        chunks_of(file),
        media_type=_WEIGHTS,
        headers={
            "Content-Disposition": f'attachment; filename="{job.id}-round-{round}.safetensors"',
            "Content-Length": str(os.fstat(file.fileno()).st_size),
        },
    )
