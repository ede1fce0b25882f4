"""Where a stream of events stands, and what follows when its connection breaks. Pure; both clients drive it.

A connection may break anywhere. The next one names the last id that arrived whole (``Last-Event-ID``), and
the service goes on right behind it: each event arrives exactly once.
"""

from __future__ import annotations

import json
from typing import Any

from httpx_sse import ServerSentEvent

from hdet_service.client._errors import ClientError, Refused, UnexpectedAnswer, Unreachable

END_EVENT = "end"
"""Sent by the service when nothing can follow: the job is over and all was sent."""


STREAM_SILENCE_S = 45.0
"""The service gives a sign of life at least every 15 s: silence beyond this is a dead connection."""


class StreamPosition:
    """The place in one stream.

    Args:
        after: Id of the last item that is known already; None starts at the beginning.
        patience_s: Time without any answer after which the stream is given up.
    """

    def __init__(self, after: str | None = None, *, patience_s: float = 60.0) -> None:
        self.last_id = after
        self.is_over = False
        self._patience_s = patience_s
        self._waited_s = 0.0
        self._breaks = 0

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the next connection."""
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        return headers if self.last_id is None else {**headers, "Last-Event-ID": self.last_id}

    def take(self, event: ServerSentEvent) -> dict[str, Any] | None:
        """The item that an event carries; None where it carries none, or one that was there before.

        Raises:
            UnexpectedAnswer: its data is no JSON object.
        """
        self._waited_s, self._breaks = 0.0, 0
        if event.event == END_EVENT:
            self.is_over = True
            return None
        if not event.data or (event.id and event.id == self.last_id):
            return None
        try:
            item = json.loads(event.data)
        except ValueError as error:
            raise UnexpectedAnswer(f"the stream carries {event.data[:80]!r}, which is no JSON") from error
        if not isinstance(item, dict):
            raise UnexpectedAnswer(f"the stream carries {event.data[:80]!r}, which is no JSON object")
        self.last_id = event.id or self.last_id
        return item

    def wait_before_reconnect(self, problem: ClientError | None, url: str) -> float:
        """Seconds until the next connection.

        Args:
            problem: Why the last one ended; None where it was just closed.

        Raises:
            ClientError: the service stayed away for too long; this is the problem.
        """
        if self._waited_s >= self._patience_s:
            raise problem or Unreachable(
                f"{url} closes the stream again and again without a word; ask its logs"
            )
        asked = problem.retry_after_s if isinstance(problem, Refused) else None
        wait = min(0.1 * 2 ** min(self._breaks, 6), 5.0) if asked is None else asked
        self._breaks += 1
        self._waited_s += max(wait, 0.1)
        return float(wait)
