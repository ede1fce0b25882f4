"""Access over HTTP: who calls, by bearer token or cookie, and whether their role may make the call at all.

Runs before anything else of a request is read. Whose job it is comes later, and there an absent job and
another's look the same.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, Request

from hdet_service.auth import CHANGERS, EVERYONE, OPERATORS, READERS, SCRAPERS, Principal, Role, check_role
from hdet_service.problems import CsrfMissing, Unauthorized
from hdet_service.sessions import COOKIE, CSRF_HEADER

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def authenticate(request: Request) -> Principal:
    """The caller.

    Raises:
        Unauthorized: no token and no session, or one that is not valid.
        CsrfMissing: a change by cookie without its header.
        TooMany: more requests than its rate.
    """
    state = request.app.state
    header = request.headers.get("authorization")
    try:
        who = _by_session(request) if header is None else _by_token(request, header)
    except Unauthorized:
        # Whoever guesses is slowed down by address; nobody else pays for it.
        state.strangers.take(request.client.host if request.client else "unknown")
        raise
    state.rates.take(who.name)
    request.state.principal = who
    return who


def _by_token(request: Request, header: str) -> Principal:
    scheme, _, token = header.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthorized("the Authorization header must read `Bearer <token>`", is_invalid=True)
    who: Principal | None = request.app.state.tokens.authenticate(token.strip())
    if who is None:
        raise Unauthorized(
            "the token is unknown or was revoked; an operator makes one with `hdet token create`",
            is_invalid=True,
        )
    return who


def _by_session(request: Request) -> Principal:
    cookie = request.cookies.get(COOKIE)
    if cookie is None:
        raise Unauthorized("send `Authorization: Bearer <token>`; `hdet up` prints the first one")
    sessions = request.app.state.sessions
    who: Principal | None = sessions.read(cookie)
    if who is None:
        raise Unauthorized("the session is over; log in again", is_invalid=True)
    if request.method not in _SAFE_METHODS and not sessions.is_csrf_token(
        cookie, request.headers.get(CSRF_HEADER)
    ):
        raise CsrfMissing(f"a change by cookie needs the header {CSRF_HEADER} that the page was given")
    return who


def needs(roles: frozenset[Role]) -> Callable[[Request], Awaitable[Principal]]:
    """A dependency that gives the caller, if its role is one of these."""

    async def caller(request: Request) -> Principal:
        who = authenticate(request)
        check_role(who, roles)
        return who

    return caller


Anyone = Annotated[Principal, Depends(needs(EVERYONE))]
Reader = Annotated[Principal, Depends(needs(READERS))]
Changer = Annotated[Principal, Depends(needs(CHANGERS))]
Operator = Annotated[Principal, Depends(needs(OPERATORS))]
Scraper = Annotated[Principal, Depends(needs(SCRAPERS))]
