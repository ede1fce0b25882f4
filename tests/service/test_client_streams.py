"""Streams that break anywhere: each event arrives exactly once."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from hdet_service.client import AsyncHDETClient, Forbidden, HDETClient, UnexpectedAnswer, Unreachable

NUM_EVENTS = 300
HEADERS = {"content-type": "text/event-stream"}


class CutStream(httpx.SyncByteStream, httpx.AsyncByteStream):
    """Bytes in chunks, and then the end or a broken connection."""

    def __init__(self, data: bytes, *, is_broken: bool, chunk_bytes: int) -> None:
        self._data = data
        self._is_broken = is_broken
        self._chunk_bytes = chunk_bytes

    def __iter__(self) -> Iterator[bytes]:
        for start in range(0, len(self._data), self._chunk_bytes):
            yield self._data[start : start + self._chunk_bytes]
        if self._is_broken:
            raise httpx.ReadError("cut")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in iter(self):
            yield chunk


class CuttingService:
    """Streams numbered events from behind ``Last-Event-ID``; cuts each connection at a random byte."""

    def __init__(self, seed: int, num_events: int = NUM_EVENTS, max_bytes: int = 400) -> None:
        self.random = random.Random(seed)
        self.num_events = num_events
        self.max_bytes = max_bytes
        self.connections = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.connections += 1
        after = int(request.headers.get("last-event-id", "0"))
        data = b": stream\nretry: 1000\n\n"
        for number in range(after + 1, self.num_events + 1):
            body = json.dumps({"id": number, "type": "round", "data": {"text": "Größe" * (number % 4)}})
            data += f"id: {number}\nevent: round\ndata: {body}\n\n: alive\n\n".encode()
        data += b'event: end\ndata: {"state":"SUCCEEDED"}\n\n'
        room = self.random.randrange(self.max_bytes)
        is_cut = room < len(data)
        chunk_bytes = self.random.choice([1, 7, 64])
        is_broken = is_cut and self.random.random() < 0.5
        stream = CutStream(data[:room], is_broken=is_broken, chunk_bytes=chunk_bytes)
        return httpx.Response(200, headers=HEADERS, stream=stream)


def test_after_a_thousand_cuts_each_event_was_seen_exactly_once() -> None:
    connections = 0
    for seed in range(12):
        service = CuttingService(seed)
        transport = httpx.MockTransport(service)
        with HDETClient("http://s.test", "t", transport=transport, sleep=lambda s: None) as client:
            seen = [event["id"] for event in client.follow_events("a")]
        assert seen == list(range(1, NUM_EVENTS + 1))
        connections += service.connections
    assert connections > 1000


def test_the_async_stream_loses_and_doubles_nothing_either() -> None:
    service = CuttingService(seed=99)

    async def run() -> list[int]:
        async def no_wait(seconds: float) -> None:
            pass

        transport = httpx.MockTransport(service)
        async with AsyncHDETClient("http://s.test", "t", transport=transport, sleep=no_wait) as client:
            return [event["id"] async for event in client.follow_events("a")]

    assert asyncio.run(run()) == list(range(1, NUM_EVENTS + 1))
    assert service.connections > 50


def test_a_stream_goes_on_behind_what_is_known() -> None:
    service = CuttingService(seed=1, num_events=10, max_bytes=10_000)
    with HDETClient(
        "http://s.test", "t", transport=httpx.MockTransport(service), sleep=lambda s: None
    ) as client:
        assert [event["id"] for event in client.follow_events("a", after=7)] == [8, 9, 10]


def _stream(answers: list[Any], waits: list[float]) -> list[dict[str, Any]]:
    def serve(request: httpx.Request) -> httpx.Response:
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    with HDETClient("http://s.test", "t", transport=httpx.MockTransport(serve), sleep=waits.append) as client:
        return list(client.follow_events("a"))


def test_a_stream_waits_for_a_service_that_restarts() -> None:
    waits: list[float] = []
    end = httpx.Response(200, headers=HEADERS, text="event: end\ndata: {}\n\n")
    busy = httpx.Response(503, json={"detail": "starting"}, headers={"Retry-After": "2"})
    assert _stream([httpx.ConnectError("refused"), busy, end], waits) == []
    assert waits[1] == 2.0


def test_a_service_that_stays_away_ends_the_stream_with_an_error() -> None:
    waits: list[float] = []
    with pytest.raises(Unreachable):
        _stream([httpx.ConnectError("refused")], waits)
    assert 60 <= sum(waits) < 70


def test_a_refused_stream_is_not_asked_for_again() -> None:
    waits: list[float] = []
    with pytest.raises(Forbidden):
        _stream([httpx.Response(403, json={"detail": "no"})], waits)
    assert waits == []


def test_a_page_in_place_of_a_stream_is_recognized() -> None:
    with pytest.raises(UnexpectedAnswer, match="no event stream"):
        _stream([httpx.Response(200, json={"items": []})], [])
