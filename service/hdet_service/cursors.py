"""Cursors of pages: opaque, signed, and bound to the list and the filters that they were made for.

A cursor holds the key of the last row seen (keyset paging), so a page stays right while rows come and go.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from typing import Any

from hdet_service.problems import BadCursor

_MAC_BYTES = 12
_MAX_CHARS = 1024


class Cursors:
    """Writes and reads cursors.

    Args:
        key: Secret of this service; a restart with the same one goes on reading the cursors it wrote.
    """

    def __init__(self, key: bytes) -> None:
        self._key = hashlib.sha256(b"cursors" + key).digest()

    def write(self, scope: str, last: str | int) -> str:
        """The cursor that goes on after ``last`` in the list that ``scope`` describes."""
        payload = json.dumps(last).encode()
        return base64.urlsafe_b64encode(self._mac(scope, payload) + payload).decode().rstrip("=")

    def read(self, scope: str, cursor: str) -> Any:
        """What `write` was given.

        Raises:
            BadCursor: not written here, or for another list or other filters.
        """
        raw = _decoded(cursor)
        mac, payload = raw[:_MAC_BYTES], raw[_MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(scope, payload)):
            raise BadCursor(
                "the cursor was not written by this service for this list and these filters; start again "
                "without one and follow `next`"
            )
        return json.loads(payload)

    def _mac(self, scope: str, payload: bytes) -> bytes:
        return hmac.digest(self._key, scope.encode() + b"\0" + payload, "sha256")[:_MAC_BYTES]


def _decoded(cursor: str) -> bytes:
    try:
        if len(cursor) > _MAX_CHARS:
            raise BadCursor(f"the cursor has {len(cursor)} characters; ours have at most {_MAX_CHARS}")
        return base64.b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4), b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise BadCursor("the cursor is damaged; start again without one and follow `next`") from error
