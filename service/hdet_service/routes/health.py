"""Whether the service is alive and ready, its metrics, and the description of its API."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

from hdet_service.access import Scraper
from hdet_service.api_models import Health
from hdet_service.api_page import render_api_page
from hdet_service.describing import Good, described
from hdet_service.metrics import CONTENT_TYPE

router = APIRouter(tags=["service"])


@router.get(
    "/healthz",
    **described(
        "Whether the process is alive",
        good=[Good(description="Alive", model=Health, example={"status": "alive"})],
        is_open=True,
    ),
)
async def healthz() -> Response:
    """Open to anyone; asks nothing of database or Ray."""
    return JSONResponse({"status": "alive"})


@router.get(
    "/readyz",
    **described(
        "Whether database and Ray answer",
        good=[Good(description="Ready", model=Health, example={"status": "ready"})],
        is_open=True,
    ),
)
async def readyz(request: Request) -> Response:
    """Open to anyone. 503 with the reason while something that jobs need does not answer."""
    await request.app.state.readiness.check()
    return JSONResponse({"status": "ready"})


@router.get(
    "/metrics",
    **described(
        "Metrics for Prometheus",
        good=[Good(description="The exposition", content={"text/plain": {"type": "string"}})],
    ),
)
async def metrics(request: Request, who: Scraper) -> Response:
    """Roles `metrics`, `viewer` and `operator`: a submitter would see others' jobs by their ids."""
    exposition = await request.app.state.controller.metrics.scrape()
    return Response(exposition, headers={"Content-Type": CONTENT_TYPE})


@router.get("/openapi.json", include_in_schema=False)
async def openapi_document(request: Request) -> Response:
    """The description of this API, open to anyone: it is the same everywhere."""
    return JSONResponse(request.app.openapi(), headers={"Cache-Control": "public, max-age=300"})


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> Response:
    """The description as a page that fetches nothing from anywhere."""
    return HTMLResponse(
        render_api_page(request.app.openapi()),
        headers={
            "Cache-Control": "public, max-age=300",
            "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; "
            "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
        },
    )


@router.get("/robots.txt", include_in_schema=False)
async def robots() -> Response:
    """Nothing here is for search engines."""
    return PlainTextResponse("User-agent: *\nDisallow: /\n")
