"""The console's login: a signed cookie that stands for a token, and the header that proves a click.

The cookie names the token's owner and when it ends; it holds nothing of the token. It is checked against
the live tokens on every call, so revoking the token ends the session too.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import time
from collections.abc import Callable

from fastapi import Response

from hdet_service.auth import Principal, Role

COOKIE = "hdet_session"
CSRF_HEADER = "X-HDET-CSRF"
LIFETIME_S = 12 * 3600
_MAX_CHARS = 1024


class Sessions:
    """Issues and reads session cookies.

    Args:
        key: Secret of this service; a restart with the same one keeps people logged in.
        stamp_of: Tells a live token from its successors of the same name; None once it was revoked.
        is_secure: Send the cookie over TLS only.
    """

    def __init__(
        self,
        key: bytes,
        stamp_of: Callable[[Principal], str | None],
        *,
        is_secure: bool,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._key = hashlib.sha256(b"sessions" + key).digest()
        self._stamp_of = stamp_of
        self._is_secure = is_secure
        self._clock = clock

    def issue(self, who: Principal) -> str:
        """The cookie's value for a caller whose token was checked."""
        fields = {
            "name": who.name,
            "role": who.role,
            "stamp": self._stamp_of(who),
            "until": int(self._clock()) + LIFETIME_S,
        }
        payload = base64.urlsafe_b64encode(json.dumps(fields).encode()).decode().rstrip("=")
        return f"{payload}.{self._sign('cookie', payload)}"

    def read(self, cookie: str) -> Principal | None:
        """Whom the cookie stands for; None where it is not ours, or over."""
        payload, _, signature = cookie.partition(".")
        if len(cookie) > _MAX_CHARS or not cookie.isascii():
            return None
        if not hmac.compare_digest(signature, self._sign("cookie", payload)):
            return None
        try:
            fields = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        except (binascii.Error, ValueError):
            return None
        who = Principal(fields["name"], Role(fields["role"]))
        is_live = fields["stamp"] is not None and fields["stamp"] == self._stamp_of(who)
        return who if is_live and self._clock() < fields["until"] else None

    def csrf_token(self, cookie: str) -> str:
        """What state-changing calls by this cookie carry in `X-HDET-CSRF`."""
        return self._sign("csrf", cookie)

    def is_csrf_token(self, cookie: str, given: str | None) -> bool:
        """Whether the header belongs to the cookie."""
        return given is not None and given.isascii() and hmac.compare_digest(given, self.csrf_token(cookie))

    def log_in(self, response: Response, who: Principal) -> None:
        """Set the cookie."""
        response.set_cookie(
            COOKIE,
            self.issue(who),
            max_age=LIFETIME_S,
            path="/",
            httponly=True,
            samesite="strict",
            secure=self._is_secure,
        )

    def log_out(self, response: Response) -> None:
        """Take the cookie away."""
        response.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict", secure=self._is_secure)

    def _sign(self, purpose: str, text: str) -> str:
        return hmac.new(self._key, f"{purpose}|{text}".encode(), "sha256").hexdigest()
