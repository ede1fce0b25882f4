"""One call over its attempts: after each, whether it is made again, given up, or done.

Pure: both clients drive it.
"""

from __future__ import annotations

import httpx

from hdet_service.client._answers import broken, was_sent
from hdet_service.client._calls import Call
from hdet_service.client._retries import Retries, retry_after_s


class Attempts:
    """What has become of one call so far."""

    def __init__(self, call: Call, retries: Retries, url: str) -> None:
        self._call = call
        self._retries = retries
        self._url = url
        self._attempt = 1

    def wait_after_break(self, error: httpx.TransportError) -> float:
        """Seconds until the next attempt.

        Raises:
            Unreachable: there is none: too many were made, or a second one could do harm.
        """
        sent = was_sent(error)
        wait = self._retries.wait_after_break(
            attempt=self._attempt, is_repeatable=self._call.is_repeatable, was_sent=sent
        )
        if wait is None:
            raise broken(error, self._url, may_have_happened=sent and not self._call.is_repeatable) from error
        self._attempt += 1
        return wait

    def wait_after_answer(self, response: httpx.Response) -> float | None:
        """Seconds until the next attempt; None where the answer stands."""
        wait = self._retries.wait_after_answer(
            attempt=self._attempt,
            status=response.status_code,
            is_repeatable=self._call.is_repeatable,
            retry_after_s=retry_after_s(response.headers.get("retry-after")),
        )
        if wait is not None:
            self._attempt += 1
        return wait

    def was_deleted_before(self, response: httpx.Response) -> bool:
        """A repeated DELETE finds nothing: the answer to an earlier attempt was lost."""
        return self._call.method == "DELETE" and self._attempt > 1 and response.status_code == 404
