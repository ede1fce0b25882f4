"""`AsyncHDETClient`: the API for asyncio; `_sync` says the same without waiting."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import httpx

from hdet_service.client import _calls, _names
from hdet_service.client._async_wire import AsyncWire
from hdet_service.client._calls import Call, job_path
from hdet_service.client._errors import NotFound, ServiceFailed
from hdet_service.client._packages import packed
from hdet_service.client._retries import Retries
from hdet_service.client._streams import StreamPosition
from hdet_service.client._types import Checkpoint, Event, Job, Override, Role, Schedule, TokenInfo
from hdet_service.client._where import locate


class AsyncHDETClient:
    """Calls the controller service. Use it as an asynchronous context manager, or `close` it.

    Args:
        url: Address of the service; unless given, ``HDET_URL``, else what runs from ``HDET_HOME``.
        token: Bearer token; unless given, ``HDET_TOKEN``, else the first token in ``HDET_HOME``.
        timeout_s: Of one call: to connect, and of each wait for bytes.
        retries: When a call is made again.
        transport: What carries requests, in place of the network.
        sleep: Waits between two calls.

    Raises:
        ConfigError: the address or the token can't be one.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        timeout_s: float = 10.0,
        retries: Retries | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._wire = AsyncWire(
            locate(url, token),
            timeout_s=timeout_s,
            retries=retries or Retries(),
            transport=transport,
            sleep=sleep,
        )

    @property
    def url(self) -> str:
        """Address of the service."""
        return self._wire.url

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close its connections."""
        await self._wire.close()

    # Jobs.

    async def submit(self, spec: Mapping[str, Any], *, idempotency_key: str | None = None) -> Job:
        """Submit a job; a lost answer is asked for again and never makes a second job.

        Raises:
            Invalid: fields of the spec are wrong; `Refused.problem` names them.
        """
        return cast(Job, await self._wire.json(_calls.submit(spec, idempotency_key)))

    async def preview(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        """What submitting would do; nothing is kept."""
        return cast(dict[str, Any], await self._wire.json(_calls.preview(spec)))

    def jobs(
        self,
        *,
        states: Sequence[str] = (),
        labels: Mapping[str, str] | None = None,
        page_size: int | None = None,
    ) -> AsyncIterator[Job]:
        """Jobs, newest first; pages are fetched as they are needed."""
        return self._wire.pages(lambda cursor: _calls.jobs(states, labels or {}, page_size, cursor))

    async def job(self, job_id: str) -> Job:
        """One job."""
        return cast(Job, await self._wire.json(_calls.read(job_path(job_id))))

    async def find_job(self, text: str) -> Job:
        """The job that an id, a unique start of an id, or a unique name stands for.

        Raises:
            AmbiguousJob: several match; names them.
            NotFound: none does.
        """
        if _names.is_job_id(text):
            with suppress(NotFound):
                return await self.job(text.upper())
        return _names.only_match(
            text, [job async for job in self.jobs(page_size=200) if _names.matches(text, job)]
        )

    async def cancel(self, job_id: str, reason: str | None = None) -> Job:
        """End a job; a second time changes nothing."""
        return cast(Job, await self._wire.json(_calls.act(job_id, "cancel", reason, is_repeatable=True)))

    async def pause(self, job_id: str, reason: str | None = None) -> Job:
        """Take a checkpoint, then stop its processes."""
        return cast(Job, await self._wire.json(_calls.act(job_id, "pause", reason, is_repeatable=False)))

    async def resume(self, job_id: str, reason: str | None = None) -> Job:
        """Let a paused job go on from its checkpoint."""
        return cast(Job, await self._wire.json(_calls.act(job_id, "resume", reason, is_repeatable=False)))

    async def delete(self, job_id: str) -> None:
        """Delete a finished job with all that is kept of it.

        Raises:
            Conflict: it is not finished.
        """
        await self._wire.json(_calls.delete(job_path(job_id)))

    async def wait(self, job_id: str, *, poll_s: float = 1.0) -> Job:
        """Wait until a job is over, and give it back."""
        while not _names.is_over(job := await self.job(job_id)):
            await self._wire.sleep(poll_s)
        return job

    async def replicas(self, job_id: str) -> list[dict[str, Any]]:
        """Each replica's newest report."""
        return [
            item
            async for item in self._wire.pages(
                lambda cursor: _calls.paged(job_path(job_id, "replicas"), {}, None, cursor)
            )
        ]

    async def checkpoints(self, job_id: str) -> list[Checkpoint]:
        """Its complete checkpoints."""
        path = job_path(job_id, "checkpoints")
        return [item async for item in self._wire.pages(lambda cursor: _calls.paged(path, {}, None, cursor))]

    # Streams.

    def events(self, job_id: str, *, page_size: int | None = None) -> AsyncIterator[Event]:
        """What has happened to a job so far."""
        return self._wire.pages(
            lambda cursor: _calls.paged(job_path(job_id, "events"), {}, page_size, cursor)
        )

    def follow_events(self, job_id: str, *, after: int | str | None = None) -> AsyncIterator[Event]:
        """What has happened and what happens, each once, over broken connections; ends with the job.

        Args:
            after: Id of the newest event that is known already.
        """
        return cast(AsyncIterator[Event], self._follow(job_id, "events", after))

    def logs(self, job_id: str, *, page_size: int | None = None) -> AsyncIterator[dict[str, Any]]:
        """The lines that its processes have written so far."""
        return self._wire.pages(lambda cursor: _calls.paged(job_path(job_id, "logs"), {}, page_size, cursor))

    def follow_logs(self, job_id: str, *, after: int | str | None = None) -> AsyncIterator[dict[str, Any]]:
        """Lines as they are written, each once; ends with the job."""
        return self._follow(job_id, "logs", after)

    # The schedule.

    async def schedule(self, job_id: str) -> Schedule:
        """The schedule as it stands; changes name its ``revision``."""
        return cast(Schedule, await self._wire.json(_calls.read(job_path(job_id, "schedule"))))

    async def history(
        self, job_id: str, *, from_round: int | None = None, all_attempts: bool = False
    ) -> AsyncIterator[dict[str, Any]]:
        """The ledger's items from a round on."""
        async for page in self.history_pages(job_id, from_round=from_round, all_attempts=all_attempts):
            for item in page["items"]:
                yield item

    async def history_pages(
        self,
        job_id: str,
        *,
        from_round: int | None = None,
        all_attempts: bool = False,
        page_size: int = _calls.LEDGER_PAGE,
    ) -> AsyncIterator[dict[str, Any]]:
        """The ledger by pages: ``items``, and what the service says beside them."""
        cursor: str | None = None
        while True:
            call = _calls.history(job_id, from_round, cursor, all_attempts=all_attempts, page_size=page_size)
            page = await self._wire.json(call)
            yield page
            cursor = page.get("next")
            if cursor is None:
                return

    async def override(self, job_id: str, override: Mapping[str, Any], *, if_match: int | str) -> Override:
        """Change a value by hand from a round on.

        Args:
            override: ``hparam``, ``op`` ("set" or "scale"), ``value``, and optionally ``group``,
                ``apply_at_round``, ``expires_after_rounds``, ``reason``.
            if_match: The schedule's revision (or ETag) that the decision was taken on.

        Raises:
            PreconditionFailed: somebody changed the schedule since.
        """
        return cast(
            Override, await self._wire.json(_calls.override(job_id, override, if_match, is_preview=False))
        )

    async def preview_override(
        self, job_id: str, override: Mapping[str, Any], *, if_match: int | str
    ) -> dict[str, Any]:
        """What an override would change; nothing is kept."""
        return cast(
            dict[str, Any],
            await self._wire.json(_calls.override(job_id, override, if_match, is_preview=True)),
        )

    async def override_state(self, job_id: str, override_id: str) -> Override:
        """An override and what became of it."""
        return cast(
            Override,
            await self._wire.json(_calls.read(job_path(job_id, "schedule", "overrides", override_id))),
        )

    async def remove_override(
        self,
        job_id: str,
        override_id: str,
        *,
        if_match: int | str | None = None,
        reason: str | None = None,
    ) -> Override:
        """Take an override back, pending or in force; a second time changes nothing.

        Raises:
            PreconditionFailed: the schedule is no longer of the revision ``if_match``.
        """
        call = _calls.remove_override(job_id, override_id, if_match, reason)
        return cast(Override, await self._wire.json(call))

    async def rollback(self, job_id: str, round: int, *, reason: str | None = None) -> dict[str, Any]:
        """Back to the schedule and checkpoint of a round, as a new attempt.

        Raises:
            Conflict: that round has no checkpoint.
        """
        body = {"round": round} if reason is None else {"round": round, "reason": reason}
        return cast(
            dict[str, Any],
            await self._wire.json(_calls.change("POST", job_path(job_id, "schedule", "rollback"), body)),
        )

    async def steer(
        self,
        job_id: str,
        hparam: str,
        *,
        frozen: bool | None = None,
        bounds: tuple[float, float] | None = None,
        reason: str | None = None,
        if_match: int | str | None = None,
    ) -> dict[str, Any]:
        """Freeze the controller for a hyperparameter, let it go on, or bound it.

        Args:
            hparam: Whose controller.
            frozen: Whether it stands still.
            bounds: Lowest and highest base value, for every group.
            reason: Kept in the audit.
            if_match: The schedule's revision (or ETag) that the decision was taken on; None takes any.
        """
        body = _calls.steering(frozen, bounds, hparam, reason)
        path = job_path(job_id, "schedule", "auto")
        return cast(dict[str, Any], await self._wire.json(_calls.change("PATCH", path, body, if_match)))

    # Files.

    async def export(self, job_id: str, target: Path, *, round: int | None = None) -> Path:
        """Download a checkpoint's weights (safetensors); the target appears when it is whole.

        Args:
            target: The file; replaced where it is there.
            round: The checkpoint's round; the newest one unless given.
        """
        if round is None:
            round = _names.newest_round(job_id, await self.checkpoints(job_id))
        call = Call(method="GET", path=job_path(job_id, "checkpoints", round, "export"))
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as file:
            try:
                await self._wire.download(call, file)
                file.flush()
                os.replace(file.name, target)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
        return target

    async def upload_package(self, folder: Path, *, exclude: Sequence[str] = ()) -> str:
        """Pack a folder and upload it; its SHA-256 is a job's ``runtime_env.working_dir``.

        Raises:
            PackageError: the folder can't be packed.
            TooLarge: the service takes no package of this size.
        """
        with ExitStack() as stack:
            # Packing takes its time: the loop goes on meanwhile.
            package = await asyncio.to_thread(stack.enter_context, packed(folder, exclude))
            call = _calls.package(package.sha256, package.size_bytes)
            await self._wire.json(call, content=lambda: _awaited(package.chunks()))
            return package.sha256

    # The service.

    async def whoami(self) -> dict[str, Any]:
        """The token's name and role."""
        return cast(dict[str, Any], await self._wire.json(_calls.read("/v1/whoami")))

    async def is_ready(self) -> bool:
        """Whether database and Ray answer."""
        try:
            await self._wire.json(_calls.probe("/readyz"))
        except ServiceFailed:
            return False
        return True

    async def drain(self, *, draining: bool = True, reason: str | None = None) -> dict[str, Any]:
        """Stop admission and pause what runs, or let it go on."""
        body = {"draining": draining} if reason is None else {"draining": draining, "reason": reason}
        return cast(dict[str, Any], await self._wire.json(_calls.change("POST", "/v1/drain", body)))

    async def tokens(self) -> list[TokenInfo]:
        """All tokens, without their secrets."""
        return [
            item
            async for item in self._wire.pages(lambda cursor: _calls.paged("/v1/tokens", {}, None, cursor))
        ]

    async def create_token(self, name: str, role: Role) -> TokenInfo:
        """A new token; the answer alone carries its secret."""
        return cast(
            TokenInfo,
            await self._wire.json(_calls.change("POST", "/v1/tokens", {"name": name, "role": role})),
        )

    async def revoke_token(self, name: str) -> None:
        """End a token; it is refused from then on."""
        await self._wire.json(_calls.delete(_calls.token_path(name)))

    def audit(self, *, page_size: int | None = None) -> AsyncIterator[dict[str, Any]]:
        """Who changed what, newest first."""
        return self._wire.pages(lambda cursor: _calls.paged("/v1/audit", {}, page_size, cursor))

    def _follow(self, job_id: str, part: str, after: int | str | None) -> AsyncIterator[dict[str, Any]]:
        position = StreamPosition(None if after is None else str(after))
        return self._wire.follow(job_path(job_id, part), position)


async def _awaited(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    """The chunks, read in a thread so that the loop goes on."""
    while (chunk := await asyncio.to_thread(next, chunks, b"")) != b"":
        yield chunk
