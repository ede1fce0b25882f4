"""Each call of the API as a value: what is sent. Both clients send the same values, one of them awaits."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from hdet_ray.exceptions import ConfigError

Params = Mapping[str, str | int]

LEDGER_PAGE = 200
"""Rounds of a ledger that are asked for at once."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request."""

    method: str
    path: str
    params: Params = field(default_factory=dict)
    body: Any = None
    """What is sent as JSON; None sends no body."""
    headers: Mapping[str, str] = field(default_factory=dict)
    is_repeatable: bool = True
    """A second one does what the first did, or nothing."""


def job_path(job_id: str, *parts: str | int) -> str:
    """Path of a job, or of a part of it; refuses what would leave the path.

    Raises:
        ConfigError: the id is empty or holds a slash.
    """
    return "/".join(["/v1/jobs", _segment(job_id), *(_segment(str(part)) for part in parts)])


def submit(spec: Mapping[str, Any], idempotency_key: str | None) -> Call:
    """A submission; a key is made where none is given, so that it may be repeated."""
    key = idempotency_key or uuid.uuid4().hex
    return Call(method="POST", path="/v1/jobs", body=dict(spec), headers={"Idempotency-Key": key})


def preview(spec: Mapping[str, Any]) -> Call:
    """A dry run: nothing is kept, so it may be repeated."""
    return Call(method="POST", path="/v1/jobs", params={"dry_run": "true"}, body=dict(spec))


def jobs(states: Sequence[str], labels: Mapping[str, str], page_size: int | None, cursor: str | None) -> Call:
    """One page of jobs, newest first."""
    params: dict[str, Any] = {}
    if states:
        params["state"] = list(states)
    if labels:
        params["label"] = [f"{key}={value}" for key, value in labels.items()]
    return Call(method="GET", path="/v1/jobs", params=_paged(params, page_size, cursor))


def read(path: str, params: Params | None = None) -> Call:
    """A plain read."""
    return Call(method="GET", path=path, params=params or {})


def probe(path: str) -> Call:
    """A look at how things are now: asking again until they are better would hide it."""
    return Call(method="GET", path=path, is_repeatable=False)


def act(job_id: str, action: str, reason: str | None, *, is_repeatable: bool) -> Call:
    """Cancel, pause or resume."""
    body = {"reason": reason} if reason else None
    return Call(method="POST", path=job_path(job_id, action), body=body, is_repeatable=is_repeatable)


def delete(path: str, *, etag: str | None = None) -> Call:
    """Remove something."""
    return Call(method="DELETE", path=path, headers={"If-Match": etag} if etag else {})


def remove_override(job_id: str, override_id: str, if_match: int | str | None, reason: str | None) -> Call:
    """Take an override back; twice is once, so it is repeated."""
    return Call(
        method="DELETE",
        path=job_path(job_id, "schedule", "overrides", override_id),
        params={"reason": reason} if reason else {},
        headers={} if if_match is None else {"If-Match": etag_of(if_match)},
    )


def override(job_id: str, body: Mapping[str, Any], if_match: int | str, *, is_preview: bool) -> Call:
    """An override, or its preview. A real one is not repeated: ask for the schedule instead."""
    return Call(
        method="POST",
        path=job_path(job_id, "schedule", "overrides"),
        params={"dry_run": "true"} if is_preview else {},
        body=dict(body),
        headers={"If-Match": etag_of(if_match)},
        is_repeatable=is_preview,
    )


def change(method: str, path: str, body: Mapping[str, Any], if_match: int | str | None = None) -> Call:
    """A change that must not be made twice."""
    headers = {} if if_match is None else {"If-Match": etag_of(if_match)}
    return Call(method=method, path=path, body=dict(body), headers=headers, is_repeatable=False)


def history(
    job_id: str, from_round: int | None, cursor: str | None, *, all_attempts: bool, page_size: int
) -> Call:
    """One page of a ledger."""
    params: dict[str, Any] = {}
    if all_attempts:
        params["all_attempts"] = "true"
    if from_round is not None:
        params["from_round"] = from_round
    return paged(job_path(job_id, "schedule", "history"), params, page_size, cursor)


def steering(
    frozen: bool | None, bounds: tuple[float, float] | None, hparam: str, reason: str | None
) -> dict[str, Any]:
    """Body of a change of the controller: what was given, and nothing else."""
    body = {"hparam": hparam, "frozen": frozen, "bounds": bounds and list(bounds), "reason": reason}
    return {name: value for name, value in body.items() if value is not None}


def package(sha256: str, size_bytes: int) -> Call:
    """The upload of a package.

    Raises:
        ConfigError: it is no SHA-256 in lower-case hexadecimal.
    """
    if not _SHA256.fullmatch(sha256):
        raise ConfigError(f"sha256={sha256!r} is no SHA-256; it has 64 lower-case hexadecimal digits")
    headers = {"Content-Type": "application/zip", "Content-Length": str(size_bytes)}
    return Call(method="PUT", path=f"/v1/packages/{sha256}", headers=headers)


def token_path(name: str) -> str:
    """Path of a token.

    Raises:
        ConfigError: the name can't stand in a path.
    """
    return f"/v1/tokens/{_segment(name)}"


def etag_of(revision: int | str) -> str:
    """The ETag of a schedule's revision; a text is taken as it is."""
    return f'"{revision}"' if isinstance(revision, int) else revision


def paged(path: str, params: Mapping[str, Any], page_size: int | None, cursor: str | None) -> Call:
    """One page of something."""
    return Call(method="GET", path=path, params=_paged(dict(params), page_size, cursor))


def _paged(params: dict[str, Any], page_size: int | None, cursor: str | None) -> dict[str, Any]:
    if page_size is not None:
        params["limit"] = page_size
    if cursor is not None:
        params["cursor"] = cursor
    return params


def _segment(text: str) -> str:
    if not text or "/" in text or text in (".", ".."):
        raise ConfigError(f"{text!r} can't stand in an address; give an id as `hdet jobs list` shows it")
    return quote(text, safe="")
