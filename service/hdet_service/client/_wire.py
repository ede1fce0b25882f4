"""How `HDETClient` talks: calls until they are answered, pages, downloads, and streams that reconnect."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import IO, Any

import httpx
from httpx_sse import EventSource, SSEError

from hdet_service.client._answers import broken, content_of, not_a_stream, raise_for
from hdet_service.client._attempts import Attempts
from hdet_service.client._calls import Call
from hdet_service.client._errors import ClientError, ServiceFailed, TooMany
from hdet_service.client._retries import Retries
from hdet_service.client._streams import STREAM_SILENCE_S, StreamPosition
from hdet_service.client._where import Where

TRANSFER_SILENCE_S = 300.0
"""A large file may take the service this long before it answers: weights to convert, a package to check."""


class Wire:
    """One connection pool to one service."""

    def __init__(
        self,
        where: Where,
        *,
        timeout_s: float,
        retries: Retries,
        transport: httpx.BaseTransport | None,
        sleep: Callable[[float], None],
    ) -> None:
        self.url = where.url
        self.sleep = sleep
        self._retries = retries
        self._timeout_s = timeout_s
        # No proxy or .netrc of the environment: the token goes to the named address only.
        self._http = httpx.Client(
            base_url=where.url, headers=where.headers, timeout=timeout_s, transport=transport, trust_env=False
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def json(self, call: Call, content: Callable[[], Iterator[bytes]] | None = None) -> Any:
        """The answer's JSON; the call is repeated as its retries allow.

        Args:
            content: Gives the body's bytes anew for each attempt, where it is no JSON.
        """
        attempts = Attempts(call, self._retries, self.url)
        while True:
            request = self._http.build_request(
                call.method,
                call.path,
                params=dict(call.params),
                json=call.body,
                content=content() if content else None,
                headers=dict(call.headers),
                timeout=httpx.Timeout(self._timeout_s, read=TRANSFER_SILENCE_S)
                if content
                else self._timeout_s,
            )
            try:
                response = self._http.send(request)
            except httpx.TransportError as error:
                wait = attempts.wait_after_break(error)
            else:
                if attempts.was_deleted_before(response):
                    return None
                again = attempts.wait_after_answer(response)
                if again is None:
                    return content_of(response)
                wait = again
            self.sleep(wait)

    def pages(self, call_of: Callable[[str | None], Call]) -> Iterator[Any]:
        """The items of all pages; a page is fetched when its first item is asked for."""
        cursor: str | None = None
        while True:
            page = self.json(call_of(cursor))
            yield from page["items"]
            cursor = page.get("next")
            if cursor is None:
                return

    def download(self, call: Call, file: IO[bytes]) -> None:
        """Write the answer's bytes to a file, from its start; one that breaks off is fetched anew."""
        attempts = Attempts(call, self._retries, self.url)
        while True:
            file.seek(0)
            file.truncate()
            try:
                wait = self._downloaded(call, file, attempts)
            except httpx.TransportError as error:
                wait = attempts.wait_after_break(error)
            if wait is None:
                return
            self.sleep(wait)

    def _downloaded(self, call: Call, file: IO[bytes], attempts: Attempts) -> float | None:
        """One attempt: None where it is done, else seconds until the next one."""
        timeout = httpx.Timeout(self._timeout_s, read=TRANSFER_SILENCE_S)
        with self._http.stream(call.method, call.path, timeout=timeout) as response:
            if not response.is_success:
                response.read()
                wait = attempts.wait_after_answer(response)
                if wait is not None:
                    return wait
            raise_for(response)
            for chunk in response.iter_bytes():
                file.write(chunk)
        return None

    def follow(self, path: str, position: StreamPosition) -> Iterator[dict[str, Any]]:
        """The items of a stream, each once, until the service says that none can follow."""
        while True:
            problem: ClientError | None = None
            try:
                yield from self._connected(path, position)
            except (TooMany, ServiceFailed) as error:
                problem = error
            except SSEError as error:  # httpx-sse makes it a TransportError, which it is not
                raise not_a_stream(self.url, error) from error
            except httpx.TransportError as error:
                problem = broken(error, self.url, may_have_happened=False)
            if position.is_over:
                return
            self.sleep(position.wait_before_reconnect(problem, self.url))

    def _connected(self, path: str, position: StreamPosition) -> Iterator[dict[str, Any]]:
        timeout = httpx.Timeout(self._timeout_s, read=STREAM_SILENCE_S)
        with self._http.stream("GET", path, headers=position.headers, timeout=timeout) as response:
            if not response.is_success:
                response.read()
            raise_for(response)
            for event in EventSource(response).iter_sse():
                item = position.take(event)
                if item is not None:
                    yield item
                if position.is_over:
                    return
