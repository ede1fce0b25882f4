"""How `AsyncHDETClient` talks: as `_wire` does, awaiting."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
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
from hdet_service.client._wire import TRANSFER_SILENCE_S


class AsyncWire:
    """One connection pool to one service."""

    def __init__(
        self,
        where: Where,
        *,
        timeout_s: float,
        retries: Retries,
        transport: httpx.AsyncBaseTransport | None,
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self.url = where.url
        self.sleep = sleep
        self._retries = retries
        self._timeout_s = timeout_s
        # No proxy or .netrc of the environment: the token goes to the named address only.
        self._http = httpx.AsyncClient(
            base_url=where.url, headers=where.headers, timeout=timeout_s, transport=transport, trust_env=False
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def json(self, call: Call, content: Callable[[], AsyncIterator[bytes]] | None = None) -> Any:
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
                response = await self._http.send(request)
            except httpx.TransportError as error:
                wait = attempts.wait_after_break(error)
            else:
                if attempts.was_deleted_before(response):
                    return None
                again = attempts.wait_after_answer(response)
                if again is None:
                    return content_of(response)
                wait = again
            await self.sleep(wait)

    async def pages(self, call_of: Callable[[str | None], Call]) -> AsyncIterator[Any]:
        """The items of all pages; a page is fetched when its first item is asked for."""
        cursor: str | None = None
        while True:
            page = await self.json(call_of(cursor))
            for item in page["items"]:
                yield item
            cursor = page.get("next")
            if cursor is None:
                return

    async def download(self, call: Call, file: IO[bytes]) -> None:
        """Write the answer's bytes to a file, from its start; one that breaks off is fetched anew."""
        attempts = Attempts(call, self._retries, self.url)
        while True:
            file.seek(0)
            file.truncate()
            try:
                wait = await self._downloaded(call, file, attempts)
            except httpx.TransportError as error:
                wait = attempts.wait_after_break(error)
            if wait is None:
                return
            await self.sleep(wait)

    async def _downloaded(self, call: Call, file: IO[bytes], attempts: Attempts) -> float | None:
        """One attempt: None where it is done, else seconds until the next one."""
        timeout = httpx.Timeout(self._timeout_s, read=TRANSFER_SILENCE_S)
        async with self._http.stream(call.method, call.path, timeout=timeout) as response:
            if not response.is_success:
                await response.aread()
                wait = attempts.wait_after_answer(response)
                if wait is not None:
                    return wait
            raise_for(response)
            async for chunk in response.aiter_bytes():
                file.write(chunk)
        return None

    async def follow(self, path: str, position: StreamPosition) -> AsyncIterator[dict[str, Any]]:
        """The items of a stream, each once, until the service says that none can follow."""
        while True:
            problem: ClientError | None = None
            try:
                async for item in self._connected(path, position):
                    yield item
            except (TooMany, ServiceFailed) as error:
                problem = error
            except SSEError as error:  # httpx-sse makes it a TransportError, which it is not
                raise not_a_stream(self.url, error) from error
            except httpx.TransportError as error:
                problem = broken(error, self.url, may_have_happened=False)
            if position.is_over:
                return
            await self.sleep(position.wait_before_reconnect(problem, self.url))

    async def _connected(self, path: str, position: StreamPosition) -> AsyncIterator[dict[str, Any]]:
        timeout = httpx.Timeout(self._timeout_s, read=STREAM_SILENCE_S)
        async with self._http.stream("GET", path, headers=position.headers, timeout=timeout) as response:
            if not response.is_success:
                await response.aread()
            raise_for(response)
            async for event in EventSource(response).aiter_sse():
                item = position.take(event)
                if item is not None:
                    yield item
                if position.is_over:
                    return
