"""Tokens as they are kept: made, revoked, read from a file, and looked up on each call.

All live ones are held in memory (this process alone writes them), so a lookup asks no database and takes
the same time whether a token exists or not.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from hdet_ray.exceptions import ConfigError
from hdet_service.auth import MIN_TOKEN_CHARS, Principal, Role, is_same_digest, new_token, token_digest
from hdet_service.problems import Conflict, NotFound
from hdet_service.secrets_file import write_secret
from hdet_service.store.database import Store
from hdet_service.store.models import Audit, Token

log = logging.getLogger(__name__)

FIRST_OPERATOR = "operator"
_STAMP_CHARS = 16
CONTROLLER = "controller"
"""Who does what no token did."""


@dataclass(frozen=True, slots=True)
class GivenToken:
    """One line of the tokens file."""

    name: str
    role: Role
    token: str


class Tokens:
    """All tokens of one service."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._live: tuple[tuple[str, Principal], ...] = ()
        self._set_live(store.read_sync(_live_rows))

    def authenticate(self, token: str) -> Principal | None:
        """Whose token it is; None for one that is unknown or revoked."""
        digest = token_digest(token)
        found = None
        for held, principal in self._live:  # all of them, always: time tells nothing
            if is_same_digest(held, digest):
                found = principal
        return found

    def stamp_of(self, who: Principal) -> str | None:
        """Tells a caller's live token from earlier and later ones; None once it was revoked."""
        return next((digest[:_STAMP_CHARS] for digest, held in self._live if held == who), None)

    def bootstrap(self, path: Path, tokens_file: Path | None) -> str | None:
        """Take over the tokens file; where no operator is left, make one and write its token to ``path``.

        Returns:
            The new operator's token, to be printed once; None where there is an operator.

        Raises:
            ConfigError: the tokens file can't be read as one.
        """
        given = [] if tokens_file is None else read_tokens_file(tokens_file)
        self._set_live(
            self._store.write_sync(lambda session: _take_over(session, given, self._store.clock()))
        )
        if any(principal.role is Role.OPERATOR for _, principal in self._live):
            return None
        token = new_token()
        # The file first: a token that is stored and that nobody holds would lock everyone out.
        write_secret(path, token.encode())
        name = self._store.read_sync(_unused_operator)
        rows = self._store.write_sync(
            lambda session: _add(session, name, Role.OPERATOR, token, CONTROLLER, self._store.clock())
        )
        self._set_live(rows)
        return token

    async def create(self, name: str, role: Role, who: Principal) -> tuple[str, Token]:
        """Make a token; the only time that it is seen.

        Raises:
            Conflict: the name was used before, also by a revoked one: it owns jobs and stands in the audit.
        """
        token = new_token()
        now = self._store.clock()
        rows = await self._store.write(lambda s: _add(s, name, role, token, who.name, now))
        self._set_live(rows)
        return token, next(row for row in rows if row.name == name)

    async def revoke(self, name: str, who: Principal) -> None:
        """End a token at once.

        Raises:
            NotFound: no live token has this name.
            Conflict: it is the last operator's.
        """
        now = self._store.clock()
        self._set_live(await self._store.write(lambda session: _revoke(session, name, who.name, now)))

    async def rows(self) -> list[Token]:
        """All tokens, revoked ones too, by name."""
        return await self._store.read(lambda s: list(s.scalars(select(Token).order_by(Token.name))))

    def _set_live(self, rows: list[Token]) -> None:
        self._live = tuple((row.digest, Principal(row.name, Role(row.role))) for row in rows)


def read_tokens_file(path: Path) -> list[GivenToken]:
    """Lines of ``name role token``; empty ones and those that begin with # are left out.

    Raises:
        ConfigError: names the line, never the token in it.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"tokens_file={str(path)!r} can't be read: {error}") from error
    given = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        given.append(_given(line.split(), f"line {number} of {path}"))
    names = [one.name for one in given]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"{path} names {twice[0]!r} twice; give each token a name of its own")
    return given


def _given(parts: list[str], where: str) -> GivenToken:
    if len(parts) != 3:
        raise ConfigError(f"{where} has {len(parts)} words; write `name role token`")
    name, role, token = parts
    if role not in list(Role):
        raise ConfigError(f"{where}: role {role[:40]!r} is unknown; use one of {', '.join(Role)}")
    if len(token) < MIN_TOKEN_CHARS:
        raise ConfigError(
            f"{where}: a token of {len(token)} characters can be guessed; use at least {MIN_TOKEN_CHARS} "
            "random ones, such as `openssl rand -hex 32` prints"
        )
    return GivenToken(name, Role(role), token)


def _live_rows(session: Session) -> list[Token]:
    return list(session.scalars(select(Token).where(Token.revoked_s.is_(None)).order_by(Token.name)))


def _take_over(session: Session, given: list[GivenToken], now: float) -> list[Token]:
    for one in given:
        digest = token_digest(one.token)
        row = session.get(Token, one.name)
        if row is None:
            _add(session, one.name, one.role, one.token, CONTROLLER, now)
        elif row.digest != digest:  # the secret was rotated
            before = _shown(row)
            row.digest, row.role, row.revoked_s = digest, one.role, None
            _audit(session, "token.rotate", CONTROLLER, before, _shown(row), now)
        elif row.revoked_s is not None:
            log.warning("token of the tokens file stays revoked", extra={"token_name": one.name})
        elif row.role != one.role:
            before = _shown(row)
            row.role = one.role
            _audit(session, "token.role", CONTROLLER, before, _shown(row), now)
    session.flush()
    return _live_rows(session)


def _add(session: Session, name: str, role: Role, token: str, actor: str, now: float) -> list[Token]:
    if session.get(Token, name) is not None:
        raise Conflict(
            f"the name {name!r} was used for a token before; take another: jobs and the audit know it by name"
        )
    row = Token(name=name, role=role, digest=token_digest(token), created_s=now, revoked_s=None)
    session.add(row)
    _audit(session, "token.create", actor, None, _shown(row), now)
    session.flush()
    return _live_rows(session)


def _revoke(session: Session, name: str, actor: str, now: float) -> list[Token]:
    row = session.get(Token, name)
    if row is None or row.revoked_s is not None:
        raise NotFound(f"there is no live token {name!r}; `GET /v1/tokens` lists them")
    operators = [one for one in _live_rows(session) if one.role == Role.OPERATOR]
    if operators == [row]:
        raise Conflict(f"{name!r} is the last operator: nobody could make another; create one first")
    before = _shown(row)
    row.revoked_s = now
    _audit(session, "token.revoke", actor, before, _shown(row), now)
    session.flush()
    return _live_rows(session)


def _unused_operator(session: Session) -> str:
    names = set(session.scalars(select(Token.name)))
    candidates = [FIRST_OPERATOR, *(f"{FIRST_OPERATOR}-{n}" for n in range(2, len(names) + 3))]
    return next(name for name in candidates if name not in names)


def _shown(row: Token) -> dict[str, object]:
    """What the audit keeps of a token: no digest."""
    return {"name": row.name, "role": str(row.role), "revoked": row.revoked_s is not None}


def _audit(
    session: Session,
    action: str,
    actor: str,
    before: dict[str, object] | None,
    after: dict[str, object] | None,
    now: float,
) -> None:
    session.add(
        Audit(actor=actor, action=action, job_id=None, before=before, after=after, reason="", at_s=now)
    )
