"""Who I am, tokens, the audit, and draining."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from sqlalchemy import select

from hdet_service.access import Anyone, Operator
from hdet_service.api_models import AuditPage, DrainAnswer, NewToken, TokenPage, Whoami
from hdet_service.auth import Role
from hdet_service.describing import Good, described, json_body
from hdet_service.job_view import rfc3339
from hdet_service.paging import PageQuery, page, page_limit, page_start
from hdet_service.reading import body, query
from hdet_service.schemas import DrainBody, TokenBody
from hdet_service.store.models import Audit, Token

router = APIRouter(prefix="/v1", tags=["service"])

_TOKEN = {"name": "ci", "role": "submitter", "created_at": "2026-11-24T12:00:00.000Z", "revoked_at": None}


@router.get(
    "/whoami",
    **described(
        "Name and role of the token",
        good=[Good(description="The caller", model=Whoami, example={"name": "ci", "role": "submitter"})],
    ),
)
async def whoami(who: Anyone) -> Response:
    """Any role."""
    return JSONResponse({"name": who.name, "role": who.role})


@router.get(
    "/tokens",
    **described(
        "All tokens, without their secrets",
        good=[Good(description="Tokens by name", model=TokenPage, example={"items": [_TOKEN], "next": None})],
        also=[400],
        query=PageQuery,
    ),
)
async def list_tokens(
    request: Request, who: Operator, asked: Annotated[PageQuery, Depends(query(PageQuery))]
) -> Response:
    """Revoked ones stay in the list: their names stand in jobs and in the audit."""
    limit = page_limit(request, asked)
    after = page_start(request, asked, "tokens", str)
    rows = [row for row in await request.app.state.tokens.rows() if after is None or row.name > after]
    return JSONResponse(page(request, rows, limit, "tokens", lambda row: row.name, _token_view))


@router.post(
    "/tokens",
    **described(
        "Make a token",
        good=[
            Good(
                status=201,
                description="The only time that its secret is shown",
                model=NewToken,
                example={**_TOKEN, "token": "hdet_…"},
                headers={"Location": "Where it is revoked."},
            )
        ],
        also=[409],
        body=json_body("NewTokenRequest", {"name": "ci", "role": "submitter"}),
    ),
)
async def create_token(
    request: Request, who: Operator, given: Annotated[TokenBody, Depends(body(TokenBody))]
) -> Response:
    """409 for a name that was used before, also by a token that was revoked."""
    token, row = await request.app.state.tokens.create(given.name, Role(given.role), who)
    return JSONResponse(
        {**_token_view(row), "token": token},
        status_code=201,
        headers={"Location": f"/v1/tokens/{given.name}"},
    )


@router.delete(
    "/tokens/{name}",
    **described(
        "Revoke a token",
        good=[Good(status=204, description="It is refused from now on")],
        also=[404, 409],
    ),
)
async def revoke_token(request: Request, name: str, who: Operator) -> Response:
    """409 for the last operator's: nobody could make another."""
    await request.app.state.tokens.revoke(name, who)
    return Response(status_code=204)


@router.get(
    "/audit",
    **described(
        "Who changed what, newest first",
        good=[Good(description="A page", model=AuditPage)],
        also=[400],
        query=PageQuery,
    ),
)
async def read_audit(
    request: Request, who: Operator, asked: Annotated[PageQuery, Depends(query(PageQuery))]
) -> Response:
    """It outlives the jobs that it is about."""
    limit = page_limit(request, asked)
    before = page_start(request, asked, "audit", int)
    statement = select(Audit).order_by(Audit.id.desc()).limit(limit + 1)
    if before is not None:
        statement = statement.where(Audit.id < before)
    rows = await request.app.state.controller.store.read(lambda s: list(s.scalars(statement)))
    return JSONResponse(page(request, rows, limit, "audit", lambda row: row.id, _audit_view))


@router.post(
    "/drain",
    **described(
        "Stop admission and pause what runs, or go on",
        good=[
            Good(
                status=202,
                description="It is under way",
                model=DrainAnswer,
                example={"draining": True, "jobs": ["01JQ7Z3X4M0000000000000000"]},
            )
        ],
        body=json_body("Drain", {"draining": True, "reason": "upgrade"}, is_required=False),
    ),
)
async def drain(
    request: Request,
    who: Operator,
    given: Annotated[DrainBody, Depends(body(DrainBody, is_optional=True))],
) -> Response:
    """For upgrades: each job saves a checkpoint first; `{"draining": false}` resumes those it paused."""
    jobs = await request.app.state.controller.jobs.drain(who, given.reason, is_draining=given.draining)
    return JSONResponse({"draining": given.draining, "jobs": list(jobs)}, status_code=202)


def _token_view(row: Token) -> dict[str, Any]:
    return {
        "name": row.name,
        "role": row.role,
        "created_at": rfc3339(row.created_s),
        "revoked_at": rfc3339(row.revoked_s),
    }


def _audit_view(row: Audit) -> dict[str, Any]:
    return {
        "id": row.id,
        "actor": row.actor,
        "action": row.action,
        "job_id": row.job_id,
        "before": row.before,
        "after": row.after,
        "reason": row.reason,
        "at": rfc3339(row.at_s),
    }
