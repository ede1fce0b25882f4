"""Events: recorded inside the write that makes them true, handed to listeners once that write is on the disk.

A stream reads the database from the id that its client saw last and only then listens here, with the
subscription made before the read: so it can neither miss an event nor send one twice.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from sqlalchemy import insert
from sqlalchemy.orm import Session

from hdet_service.metrics.counts import add_counts, counts_of_event
from hdet_service.store.models import Event

_INSERT = insert(Event.__table__)  # type: ignore[arg-type]
_IN_SESSION = "events"
MAX_WAITING = 1000
"""Events that wait for one listener; one that falls further behind is ended, and reads the database again."""


def record(session: Session, job_id: str, type: str, data: Mapping[str, Any], at_s: float) -> Event:
    """Add an event to the write that is under way; it is published after that write's commit."""
    if session.new:
        session.flush()  # what the event tells of comes first
    row = {"job_id": job_id, "type": type, "data": dict(data), "at_s": at_s}
    # Ids grow in the order of commits, since one thread writes. Past the ORM: each round leaves an event.
    key = session.connection().execute(_INSERT, row).inserted_primary_key
    event = Event(id=key and key[0], **row)
    add_counts(session, job_id, counts_of_event(type, data))
    session.info.setdefault(_IN_SESSION, []).append(as_dict(event))
    return event


def as_dict(event: Event) -> dict[str, Any]:
    """An event as listeners get it."""
    return {
        "id": event.id,
        "job_id": event.job_id,
        "type": event.type,
        "data": event.data,
        "at_s": event.at_s,
    }


class EventBus:
    """Hands committed events to whoever listens, on one event loop."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._subscriptions: set[Subscription] = set()
        self.is_closed = False
        """The service stops: streams end, clients come again."""

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Deliver on this loop from now on."""
        self._loop = loop

    def after_commit(self, info: Mapping[Any, Any]) -> None:
        """`Store.on_commit`'s listener; runs in the writer's thread."""
        events = info.get(_IN_SESSION)
        if events and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._publish_all, list(events))

    def publish(self, event: Mapping[str, Any]) -> None:
        """Hand one event out; on the loop."""
        for subscription in tuple(self._subscriptions):
            subscription.offer(event)

    def subscribe(self, job_id: str | None = None) -> Subscription:
        """Events of a job, or of all, from this moment on; close it when done."""
        subscription = Subscription(self, job_id)
        self._subscriptions.add(subscription)
        return subscription

    def close(self) -> None:
        """End every subscription: streams then close, and clients come again."""
        self.is_closed = True
        for subscription in tuple(self._subscriptions):
            subscription.close()

    def forget(self, subscription: Subscription) -> None:
        """Nothing more for this one."""
        self._subscriptions.discard(subscription)

    def _publish_all(self, events: list[Mapping[str, Any]]) -> None:
        for event in events:
            self.publish(event)


class Subscription:
    """An async iterator of events, in order. It ends when closed, or when its reader fell too far behind."""

    def __init__(self, bus: EventBus, job_id: str | None) -> None:
        self._bus = bus
        self._job_id = job_id
        self._waiting: deque[Mapping[str, Any]] = deque()
        self._has_news = asyncio.Event()
        self._is_closed = False

    def offer(self, event: Mapping[str, Any]) -> None:
        """Queue an event if it is of this subscription's job."""
        if self._job_id is not None and event["job_id"] != self._job_id:
            return
        if len(self._waiting) >= MAX_WAITING:
            self.close()
            return
        self._waiting.append(event)
        self._has_news.set()

    def close(self) -> None:
        """End the iteration once what waits has been read."""
        self._is_closed = True
        self._bus.forget(self)
        self._has_news.set()

    async def aclose(self) -> None:
        """`close`, as async iterators have it."""
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Mapping[str, Any]:
        while not self._waiting:
            if self._is_closed:
                raise StopAsyncIteration
            self._has_news.clear()
            await self._has_news.wait()
        return self._waiting.popleft()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
