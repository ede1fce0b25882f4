"""Following a job: its events and its output, from a place on, until nothing can follow.

Each reads what is stored first and only then waits, so it makes no difference where a stream was cut. What
wakes a reader up carries nothing: the next read tells.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from hdet_service import sse
from hdet_service.events import as_dict
from hdet_service.logs import LogPosition, Logs
from hdet_service.states import TERMINAL, State
from hdet_service.store.database import Store
from hdet_service.store.models import Event, Job

BATCH = 200
LOG_POLL_S = 0.5
"""Output is copied at every look at Ray, about as often."""
LOG_GRACE_S = 3.0
"""A driver's last lines may be copied after its job has ended."""
GONE = "DELETED"
"""Stands for the state of a job that is no more."""


def events_after(session: Session, job_id: str, after: int, limit: int) -> list[Event]:
    """Events of a job behind an id, oldest first."""
    chosen = select(Event).where(Event.job_id == job_id, Event.id > after).order_by(Event.id).limit(limit)
    return list(session.scalars(chosen))


async def follow_events(
    store: Store, bus: Any, job_id: str, after: int, heartbeat_s: float = sse.HEARTBEAT_S
) -> AsyncGenerator[bytes, None]:
    """Events as they are committed, each once; ends with the job.

    Args:
        store: Where they are read.
        bus: Wakes up.
        job_id: Whose.
        after: Id of the last one that is known.
        heartbeat_s: A sign of life at least this often, in seconds.
    """
    while True:
        with bus.subscribe(job_id) as news:  # before the read: what is committed after it wakes us up
            while True:
                events, state = await store.read(partial(_events_and_state, job_id=job_id, after=after))
                for event in events:
                    after = event.id
                    yield sse.item(event.id, event.type, as_dict(event))
                if len(events) == BATCH:
                    continue
                if state == GONE or State(state) in TERMINAL:
                    yield sse.end({"state": state})
                    return
                is_open, is_quiet = await _wait(news, after, heartbeat_s)
                if is_quiet:
                    yield sse.HEARTBEAT
                if not is_open:
                    break
        if bus.is_closed:
            return


async def _wait(news: Any, after: int, heartbeat_s: float) -> tuple[bool, bool]:
    """Wait for an event behind ``after``: whether the subscription stands, and whether it was quiet."""
    try:
        async with asyncio.timeout(heartbeat_s):
            while (await anext(news))["id"] <= after:  # read from the database already
                continue
    except StopAsyncIteration:
        return False, False
    except TimeoutError:
        return True, True
    return True, False


def _events_and_state(session: Session, job_id: str, after: int) -> tuple[list[Event], str]:
    # One transaction: a job seen as ended has no event that this read missed.
    events = events_after(session, job_id, after, BATCH)
    return events, session.scalar(select(Job.state).where(Job.id == job_id)) or GONE


async def follow_logs(
    store: Store,
    logs: Logs,
    job_id: str,
    after: LogPosition,
    is_stopping: Callable[[], bool],
    heartbeat_s: float = sse.HEARTBEAT_S,
) -> AsyncGenerator[bytes, None]:
    """Lines as they are copied, each once; ends with the job."""
    spoke_s = time.monotonic()
    while not is_stopping():
        state, is_final = await store.read(lambda session: _log_state(session, job_id, store.clock()))
        lines = await asyncio.to_thread(logs.read, job_id, after, limit=BATCH, is_final=is_final)
        for line in lines:
            after = line.position
            spoke_s = time.monotonic()
            yield sse.item(str(line.position), "line", log_item(line))
        if len(lines) == BATCH:
            continue
        if is_final:
            yield sse.end({"state": state})
            return
        if time.monotonic() - spoke_s >= heartbeat_s:
            spoke_s = time.monotonic()
            yield sse.HEARTBEAT
        await asyncio.sleep(LOG_POLL_S)


def log_item(line: Any) -> dict[str, Any]:
    """A line as JSON; its id is the place right behind it."""
    return {"id": str(line.position), "submission": line.submission, "line": line.text}


def _log_state(session: Session, job_id: str, now_s: float) -> tuple[str, bool]:
    job = session.execute(select(Job.state, Job.finished_s).where(Job.id == job_id)).first()
    if job is None:
        return GONE, True
    has_ended = State(job.state) in TERMINAL
    # A clock that went back must not keep a stream open for ever.
    is_final = has_ended and not 0 <= now_s - (job.finished_s or 0.0) < LOG_GRACE_S
    return job.state, is_final


async def is_log_final(store: Store, job_id: str) -> bool:
    """Whether nothing more will be written."""
    _, is_final = await store.read(lambda session: _log_state(session, job_id, store.clock()))
    return is_final
