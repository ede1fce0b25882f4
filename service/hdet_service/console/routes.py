"""The console's pages. They read; the only forms log in and out."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, urlsplit

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from hdet_service import sse
from hdet_service.auth import READERS, Principal
from hdet_service.console import pages
from hdet_service.console.live import changes
from hdet_service.console.record import RunRecords
from hdet_service.ownership import readable
from hdet_service.problems import Forbidden, NotFound, ServiceError, TooLarge, Unauthorized
from hdet_service.reading import read_body
from hdet_service.sessions import COOKIE
from hdet_service.store.models import Job

router = APIRouter(include_in_schema=False)

MAX_FORM_BYTES = 4096
_JOB_PAGE = re.compile(r"/jobs/[0-9A-Za-z]{1,64}")
_STATIC = {"console.css": "text/css", "console.js": "text/javascript", "favicon.svg": "image/svg+xml"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
# Forms tell their origin only where referrers may stay within the site.
_HEADERS = {"Content-Security-Policy": _POLICY, "Referrer-Policy": "same-origin"}

_templates = pages.make_templates()
_records = RunRecords()


@router.get("/", response_model=None)
async def home(request: Request) -> Response:
    """The list of jobs, or the login."""
    who = _viewer(request)
    if who is None:
        return _login_page(request, next=request.query_params.get("next", "/"))
    chosen = request.query_params.get("show", "all")
    chosen = chosen if chosen in pages.FILTERS else "all"
    before = request.query_params.get("before")
    controller = request.app.state.controller
    now_s = controller.store.clock()
    page = await controller.store.read(lambda s: pages.jobs_page(s, who, chosen, before, now_s))
    return _page(request, "jobs.html", who=who, **page)


@router.get("/jobs/{job_id}", response_model=None)
async def job(request: Request, job_id: str) -> Response:
    """One job's page."""
    who = _viewer(request)
    if who is None:
        return _login_page(request, next=request.url.path)
    try:
        row = await readable(request, job_id, who)
    except NotFound as error:
        return _problem_page(request, error, who)
    store = request.app.state.controller.store
    now_s = store.clock()
    page = await store.read(lambda s: pages.job_page(s, s.get(Job, row.id) or row, _records, now_s))
    return _page(request, "job.html", who=who, **page)


@router.get("/live", response_model=None)
async def live_list(request: Request) -> Response:
    """Says when the list of jobs may have changed."""
    who = _viewer_or_refuse(request)
    mine = [] if who.sees_all_jobs else [Job.owner == who.name]

    def version(session: Session) -> str:
        newest = session.execute(
            select(func.count(), func.max(Job.updated_s), func.sum(Job.round)).where(*mine)
        ).one()
        return ".".join(str(part) for part in newest)

    return _stream(request, who, None, version)


@router.get("/jobs/{job_id}/live", response_model=None)
async def live_job(request: Request, job_id: str) -> Response:
    """Says when a job's page may have changed."""
    who = _viewer_or_refuse(request)
    row = await readable(request, job_id, who)

    def version(session: Session) -> str:
        found = session.get(Job, row.id)
        return "gone" if found is None else pages.version_of(session, found)

    return _stream(request, who, job_id, version)


@router.post("/login", response_model=None)
async def log_in(request: Request) -> Response:
    """Takes a token, gives a cookie."""
    form = await _form(request)
    next_page = form.get("next", "/")
    state = request.app.state
    who = state.tokens.authenticate(form.get("token", "").strip())
    if who is None or who.role not in READERS:
        state.strangers.take(request.client.host if request.client else "unknown")
        text = (
            "This token is unknown or was revoked."
            if who is None
            else "This token reads metrics only; take one of a viewer, submitter or operator."
        )
        return _login_page(request, next=next_page, error=text, status=401 if who is None else 403)
    answer = RedirectResponse(_own_page(next_page), status_code=303, headers=_HEADERS)
    state.sessions.log_in(answer, who)
    return answer


@router.post("/logout", response_model=None)
async def log_out(request: Request) -> Response:
    """Takes the cookie away."""
    form = await _form(request)
    cookie = request.cookies.get(COOKIE, "")
    if cookie and not request.app.state.sessions.is_csrf_token(cookie, form.get("csrf")):
        raise Forbidden("this form was not made by the page that you are logged in to; load it again")
    answer = RedirectResponse("/", status_code=303, headers=_HEADERS)
    request.app.state.sessions.log_out(answer)
    return answer


@router.get("/static/{name}", response_model=None)
async def static(name: str) -> Response:
    """Style, script and icon, from this package."""
    if name not in _STATIC:
        raise NotFound(f"there is no file {name[:100]!r}")
    headers = {"Cache-Control": "public, max-age=31536000, immutable", "Content-Security-Policy": _POLICY}
    return Response(_static(name), media_type=_STATIC[name], headers=headers)


@router.get("/favicon.ico", response_model=None)
async def favicon() -> Response:
    """For those who ask for it by its old name."""
    return await static("favicon.svg")


# ---------------------------------------------------------------------- inside


def _viewer(request: Request) -> Principal | None:
    """Who is logged in."""
    state = request.app.state
    who: Principal | None = state.sessions.read(request.cookies.get(COOKIE, ""))
    if who is None or who.role not in READERS:
        return None
    state.rates.take(who.name)
    return who


def _viewer_or_refuse(request: Request) -> Principal:
    who = _viewer(request)
    if who is None:
        raise Unauthorized("the session is over; log in again", is_invalid=True)
    return who


async def _form(request: Request) -> dict[str, str]:
    """A small form that one of our own pages has sent.

    Raises:
        Forbidden: another site has sent it.
        TooLarge: it is larger than such a form can be.
    """
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    is_foreign = site is not None and site not in ("same-origin", "none")
    if site is None and origin is not None:
        is_foreign = urlsplit(origin).netloc != request.headers.get("host")
    if is_foreign:
        raise Forbidden("this form was sent by another site; open the console itself and log in there")
    raw = await read_body(request, MAX_FORM_BYTES)
    try:
        fields = parse_qs(raw.decode("utf-8"), max_num_fields=8)
    except ValueError as error:
        raise TooLarge("this is not the form of our page") from error
    return {name: values[0] for name, values in fields.items()}


def _stream(request: Request, who: Principal, job_id: str | None, version: Any) -> Response:
    controller = request.app.state.controller

    async def read() -> str:
        return str(await controller.store.read(version))

    return sse.stream_response(request, who, changes(controller.events, job_id, read))


def _login_page(request: Request, *, next: str, error: str = "", status: int = 200) -> Response:
    return _page(request, "login.html", status=status, who=None, next=_own_page(next), error=error)


def _problem_page(request: Request, error: ServiceError, who: Principal) -> Response:
    return _page(request, "problem.html", status=error.status, who=who, title=error.title, text=error.detail)


def _own_page(path: str) -> str:
    """Where to go after the login: one of our pages, wherever a link wanted to lead."""
    return path if _JOB_PAGE.fullmatch(path) else "/"


def _page(
    request: Request, template: str, *, who: Principal | None, status: int = 200, **values: Any
) -> Response:
    cookie = request.cookies.get(COOKIE, "")
    csrf = request.app.state.sessions.csrf_token(cookie) if who is not None else ""
    html = _templates.get_template(template).render(who=who, csrf=csrf, static=_address, **values)
    return Response(html, status_code=status, media_type="text/html", headers=_HEADERS)


@lru_cache
def _static(name: str) -> bytes:
    return files("hdet_service.console").joinpath("static", name).read_bytes()


@lru_cache
def _address(name: str) -> str:
    """A file's address, another one when its content is another."""
    return f"/static/{name}?{hashlib.sha256(_static(name)).hexdigest()[:12]}"
