"""Uploads of working directories."""

from __future__ import annotations

import re

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from hdet_service.access import Changer
from hdet_service.api_models import PackageAnswer
from hdet_service.describing import Body, Good, Parameter, described
from hdet_service.problems import Invalid
from hdet_service.reading import check_announced_size, check_content_type

router = APIRouter(prefix="/v1", tags=["packages"])

_MEDIA_TYPES = ("application/zip", "application/octet-stream")
_SHA256 = r"^[0-9a-f]{64}$"
_EXAMPLE = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"


@router.put(
    "/packages/{sha256}",
    **described(
        "Upload a working directory",
        good=[
            Good(
                status=201,
                description="It was new",
                model=PackageAnswer,
                example={"sha256": _EXAMPLE, "size_bytes": 20480},
            ),
            Good(status=200, description="It was there already", model=PackageAnswer),
        ],
        body=Body(content={kind: {"schema": {"contentMediaType": kind}} for kind in _MEDIA_TYPES}),
        parameters=[
            Parameter(
                name="sha256",
                place="path",
                description="SHA-256 of the body, lower-case hexadecimal.",
                schema={"type": "string", "pattern": _SHA256},
                is_required=True,
                example=_EXAMPLE,
            )
        ],
    ),
)
async def upload_package(request: Request, who: Changer) -> Response:
    """A zip file of the folder's content; name it in a job's `runtime_env.working_dir` by this hash.

    Refused: another hash than its own, names that climb out, links, encryption, and what would unpack to
    more than 4 GiB or 50,000 files.
    """
    sha256 = request.path_params["sha256"]
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        message = "must be 64 lower-case hexadecimal digits"
        raise Invalid(f"sha256 {message}", errors=[{"field": "sha256", "message": message}])
    check_content_type(request, *_MEDIA_TYPES)
    packages = request.app.state.packages
    check_announced_size(request, packages.max_bytes)
    received = await packages.receive(sha256, request.stream(), who.name)
    return JSONResponse(
        {"sha256": received.row.sha256, "size_bytes": received.row.size_bytes},
        status_code=201 if received.is_new else 200,
    )
