"""Who is calling, and what they may do: bearer tokens, roles, and the console's cookie.

A token is 256 random bits, so its SHA-256 needs no salt; the hash alone is kept. Roles do not form one
ladder: a submitter sees its own jobs only, so it may not scrape metrics, which name every job.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from enum import StrEnum

from hdet_service.problems import Forbidden

TOKEN_PREFIX = "hdet_"
MIN_TOKEN_CHARS = 32


class Role(StrEnum):
    """What a token is for."""

    METRICS = "metrics"
    """Scrapes `/metrics`, nothing else."""
    VIEWER = "viewer"
    """Reads all jobs."""
    SUBMITTER = "submitter"
    """Submits, and owns what it submitted; sees nothing of others."""
    OPERATOR = "operator"
    """All jobs, overrides, tokens, audit."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is calling: the name of a token, and its role."""

    name: str
    role: Role

    @property
    def sees_all_jobs(self) -> bool:
        """Whether other owners' jobs are visible."""
        return self.role in (Role.VIEWER, Role.OPERATOR)

    def may_read(self, owner: str) -> bool:
        """Whether a job of ``owner`` is visible."""
        return self.sees_all_jobs or (self.role is Role.SUBMITTER and self.name == owner)

    def may_change(self, owner: str) -> bool:
        """Whether a job of ``owner`` may be canceled, paused, resumed or deleted."""
        return self.role is Role.OPERATOR or (self.role is Role.SUBMITTER and self.name == owner)


READERS = frozenset({Role.VIEWER, Role.SUBMITTER, Role.OPERATOR})
CHANGERS = frozenset({Role.SUBMITTER, Role.OPERATOR})
OPERATORS = frozenset({Role.OPERATOR})
SCRAPERS = frozenset({Role.METRICS, Role.VIEWER, Role.OPERATOR})
EVERYONE = frozenset(Role)


def check_role(who: Principal, allowed: frozenset[Role]) -> None:
    """Refuse a call that this role may never make, whatever it is about.

    Raises:
        Forbidden: names the roles that may.
    """
    if who.role not in allowed:
        names = " or ".join(repr(str(role)) for role in Role if role in allowed)
        raise Forbidden(f"this call needs the role {names}; the token {who.name!r} has {str(who.role)!r}")


def new_token() -> str:
    """A bearer token of 256 random bits."""
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


def token_digest(token: str) -> str:
    """What is stored of a token: its SHA-256, hexadecimal."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def is_same_digest(one: str, other: str) -> bool:
    """Compares in constant time."""
    return hmac.compare_digest(one, other)
