"""Streams over real sockets: cut at any byte, resumed from the last id, each item arrives exactly once."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from hdet_service import following, sse
from hdet_service.events import record
from tests.service.serving import OPERATOR, OTHER_SUBMITTER, SUBMITTER, VIEWER, Service, serving


@asynccontextmanager
async def _listening(service: Service) -> AsyncIterator[str]:
    """The service behind a real server on a free port; gives its address."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(service.app, log_level="warning", lifespan="off"))
    serve = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        while not server.started:
            await asyncio.sleep(0.005)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        service.controller.events.close()
        server.should_exit = True
        await serve
        listener.close()


class Reader:
    """A client that is cut off again and again, and keeps the whole items that it got."""

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        self.url = url
        self.items: list[tuple[str, Any]] = []
        self.is_over = False
        self.cuts = 0
        self._headers = {**headers, "Accept": "text/event-stream"}

    async def read_until_cut(self, client: httpx.AsyncClient, num_bytes: int) -> None:
        """One connection, dropped after so many bytes."""
        headers = dict(self._headers)
        if self.items:
            headers["Last-Event-ID"] = self.items[-1][0]
        text = b""
        async with client.stream("GET", self.url, headers=headers, timeout=20) as response:
            assert response.status_code == 200, await response.aread()
            assert response.headers["content-type"].startswith("text/event-stream")
            async for chunk in response.aiter_bytes():
                text += chunk
                if len(text) >= num_bytes:
                    text = text[:num_bytes]
                    self.cuts += 1
                    break
        self._take(text.decode("utf-8", "ignore"))

    def _take(self, text: str) -> None:
        for block in text.split("\n\n")[:-1]:  # what is behind the last blank line is not whole
            fields = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
            if fields.get("event") == sse.END_EVENT:
                self.is_over = True
            elif "data" in fields:
                self.items.append((fields["id"], json.loads(fields["data"])))


async def _cut_and_resume(
    url: str, headers: dict[str, str], produce: Callable[[], Any], finish: Callable[[], Any], cuts: int
) -> Reader:
    """Read under cuts while items are made, and then to the end."""
    draw = random.Random(7)
    reader = Reader(url, headers)
    async with httpx.AsyncClient() as client:
        while reader.cuts < cuts:
            for _ in range(draw.randrange(1, 4)):
                await produce()
            # From nothing at all to several items: also in the middle of one.
            await reader.read_until_cut(client, draw.choice([1, 20, 40, 90, 150, 260, 420]))
        await finish()
        while not reader.is_over:
            await reader.read_until_cut(client, 1 << 30)
    return reader


async def _events_under_cuts(home: Path, cuts: int) -> None:
    async with serving(home) as service, _listening(service) as url:
        job_id = await service.submit()
        made = 0

        async def produce() -> None:
            nonlocal made
            made += 1
            number, now_s = made, service.controller.clock()
            await service.controller.store.write(
                lambda session: record(session, job_id, "note", {"number": number, "text": "ä\n" * 9}, now_s)
            )

        async def finish() -> None:
            await service.controller.jobs.cancel(job_id, _operator(service))
            while (await service.controller.jobs.get(job_id)).state != "CANCELED":
                await service.controller.tick()

        path = f"{url}/v1/jobs/{job_id}/events"
        reader = await _cut_and_resume(path, service.headers(SUBMITTER), produce, finish, cuts)
        numbers = [item["data"]["number"] for _, item in reader.items if item["type"] == "note"]
        assert numbers == list(range(1, made + 1))
        ids = [int(id) for id, _ in reader.items]
        assert ids == sorted(set(ids))
        assert (
            reader.items[-1][1]["data"].get("state") == "CANCELED" or reader.items[-1][1]["type"] == "audit"
        )
        pages = await _all_pages(service, f"/v1/jobs/{job_id}/events")
        assert [item["id"] for item in pages] == ids


async def _logs_under_cuts(home: Path, cuts: int) -> None:
    async with serving(home) as service, _listening(service) as url:
        job_id = await service.submit()
        folder = service.controller.settings.logs_path / job_id
        folder.mkdir(parents=True)
        draw = random.Random(11)
        made: list[str] = []
        submission = 1

        async def produce() -> None:
            nonlocal submission
            if draw.random() < 0.02:
                submission += 1  # a retry: another driver's output follows
            line = f"{len(made)} {'ü' * draw.randrange(40)}"
            made.append(line)
            data = f"{line}\n".encode()
            at = draw.randrange(len(data))
            for piece in (data[:at], data[at:]):  # a line comes in pieces
                with (folder / f"{submission}.log").open("ab") as file:
                    file.write(piece)
                await asyncio.sleep(0)

        async def finish() -> None:
            await service.controller.jobs.cancel(job_id, _operator(service))
            while (await service.controller.jobs.get(job_id)).state != "CANCELED":
                await service.controller.tick()

        path = f"{url}/v1/jobs/{job_id}/logs"
        reader = await _cut_and_resume(path, service.headers(SUBMITTER), produce, finish, cuts)
        assert [item["line"] for _, item in reader.items] == made
        pages = await _all_pages(service, f"/v1/jobs/{job_id}/logs")
        assert [item["line"] for item in pages] == made


def _operator(service: Service) -> Any:
    return service.app.state.tokens.authenticate(service.tokens[OPERATOR])


async def _all_pages(service: Service, path: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    cursor = None
    while True:
        params = {"limit": 7, **({"cursor": cursor} if cursor else {})}
        page = (await service.call(SUBMITTER, "GET", path, params=params)).json()
        items += page["items"]
        cursor = page["next"]
        if cursor is None:
            return items


@pytest.fixture(autouse=True)
def _quick_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "LOG_POLL_S", 0.005)
    monkeypatch.setattr(following, "LOG_GRACE_S", 0.1)


def test_events_arrive_once_over_50_cuts(tmp_path: Path) -> None:
    asyncio.run(_events_under_cuts(tmp_path, 50))


def test_lines_of_output_arrive_once_over_50_cuts(tmp_path: Path) -> None:
    asyncio.run(_logs_under_cuts(tmp_path, 50))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_events_arrive_once_over_1000_cuts(tmp_path: Path) -> None:
    asyncio.run(_events_under_cuts(tmp_path, 1000))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_lines_of_output_arrive_once_over_1000_cuts(tmp_path: Path) -> None:
    asyncio.run(_logs_under_cuts(tmp_path, 1000))


def test_a_stream_of_a_job_that_has_ended_says_all_and_ends(tmp_path: Path) -> None:
    async def work() -> None:
        async with serving(tmp_path) as service:
            job_id = await service.submit()
            await service.call(SUBMITTER, "POST", f"/v1/jobs/{job_id}/cancel")
            while (await service.controller.jobs.get(job_id)).state != "CANCELED":
                await service.controller.tick()
            headers = {"Accept": "text/event-stream"}
            answer = await service.call(SUBMITTER, "GET", f"/v1/jobs/{job_id}/events", headers=headers)
            assert answer.text.endswith('event: end\ndata: {"state":"CANCELED"}\n\n')
            last = answer.text.split("id: ")[-1].split("\n")[0]
            again = await service.call(
                SUBMITTER, "GET", f"/v1/jobs/{job_id}/events", headers={**headers, "Last-Event-ID": last}
            )
            assert "id: " not in again.text
            assert "event: end" in again.text

    asyncio.run(work())


def test_a_quiet_stream_gives_signs_of_life(tmp_path: Path) -> None:
    async def work() -> None:
        async with serving(tmp_path) as service:
            job_id = await service.submit()
            controller = service.controller
            chunks = following.follow_events(
                controller.store, controller.events, job_id, 10**9, heartbeat_s=0.01
            )
            assert [await anext(chunks) for _ in range(3)] == [sse.HEARTBEAT] * 3
            await chunks.aclose()

    asyncio.run(work())


def test_streams_are_capped_for_each_token_and_for_all(tmp_path: Path) -> None:
    async def work() -> None:
        caps = {"max_sse_clients": 3, "max_sse_clients_per_token": 2}
        async with (
            serving(tmp_path, **caps) as service,
            _listening(service) as url,
            httpx.AsyncClient() as client,
        ):
            job_id = await service.submit()
            path = f"{url}/v1/jobs/{job_id}/events"
            parts: list[AsyncIterator[bytes]] = []

            async def open_one(caller: str) -> httpx.Response:
                headers = {**service.headers(caller), "Accept": "text/event-stream"}
                request = client.build_request("GET", path, headers=headers)
                response = await client.send(request, stream=True)
                if response.status_code == 200:
                    parts.append(response.aiter_raw())  # kept: a reader that is dropped closes its stream
                    await anext(parts[-1])
                return response

            held = [await open_one(SUBMITTER), await open_one(SUBMITTER)]
            assert (await open_one(SUBMITTER)).status_code == 429  # this token's cap
            held.append(await open_one(VIEWER))
            refused = await open_one(OPERATOR)
            assert refused.status_code == 429  # everyone's cap
            assert int(refused.headers["retry-after"]) >= 1
            assert service.controller.metrics.sse_clients == 3
            for response in held:
                await response.aclose()
            while service.app.state.streams.count:
                await asyncio.sleep(0.01)
            assert (await open_one(OPERATOR)).status_code == 200

    asyncio.run(work())


def test_a_stream_ends_when_its_token_is_revoked(tmp_path: Path) -> None:
    async def work() -> None:
        async with serving(tmp_path) as service, _listening(service) as url, httpx.AsyncClient() as client:
            job_id = await service.submit()
            headers = {**service.headers(VIEWER), "Accept": "text/event-stream"}
            async with client.stream("GET", f"{url}/v1/jobs/{job_id}/events", headers=headers) as response:
                parts = response.aiter_text()
                await anext(parts)
                await service.call(OPERATOR, "DELETE", f"/v1/tokens/{VIEWER}")
                await service.call(OPERATOR, "POST", f"/v1/jobs/{job_id}/pause")
                rest = "".join([part async for part in parts])
            assert '"PAUSED"' not in rest

    asyncio.run(work())


@pytest.mark.parametrize("last", ["x", "-1", "1.5", "1:2", "9" * 20])
def test_a_last_event_id_that_is_none_of_ours_is_named(tmp_path: Path, last: str) -> None:
    async def work() -> httpx.Response:
        async with serving(tmp_path) as service:
            job_id = await service.submit(OTHER_SUBMITTER)
            headers = {"Accept": "text/event-stream", "Last-Event-ID": last}
            return await service.call(OPERATOR, "GET", f"/v1/jobs/{job_id}/events", headers=headers)

    answer = asyncio.run(work())
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "Last-Event-ID"
