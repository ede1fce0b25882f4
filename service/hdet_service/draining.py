"""`hdet drain`: asks the service, over HTTP, and waits until what runs has paused."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx

from hdet_service.cluster_state import ClusterError, NotRunningError, read_state
from hdet_service.settings import Settings, load_client_settings

_POLL_S = 0.3
_MOVING = ("STARTING", "RUNNING", "DEGRADED", "STOPPING")


class DrainRefusedError(ClusterError):
    """The service says no."""


def drain(settings: Settings, *, is_draining: bool, reason: str, wait_s: float | None) -> dict[str, Any]:
    """Begin or end a drain.

    Args:
        settings: Name home and url.
        is_draining: False ends it.
        reason: For the audit.
        wait_s: Wait until no job runs any more, in seconds; None: don't.

    Raises:
        NotRunningError: the service does not answer.
        DrainRefusedError: the token may not.
        ClusterError: jobs still run after that time.
    """
    running = read_state(settings.home)
    url = settings.public_url if running is None else running.settings.local_url
    headers = {"Authorization": f"Bearer {_token(settings.token_path)}"}
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=60.0) as client:
            answer = client.post("/v1/drain", json={"draining": is_draining, "reason": reason})
            if answer.status_code >= 400:
                raise DrainRefusedError(str(answer.json().get("detail", answer.status_code)))
            told: dict[str, Any] = answer.json()
            if is_draining and wait_s is not None:
                _wait(client, wait_s)
    except httpx.HTTPError as error:
        raise NotRunningError(f"{url} does not answer: {error}") from error
    return told


def _wait(client: httpx.Client, wait_s: float) -> None:
    until = time.monotonic() + wait_s
    while True:
        page = client.get("/v1/jobs", params=[("state", state) for state in _MOVING])
        moving = [job["id"] for job in page.json()["items"]]
        if not moving:
            return
        if time.monotonic() > until:
            raise ClusterError(f"{len(moving)} jobs still run after {wait_s:g} s: {', '.join(moving[:5])}")
        time.sleep(_POLL_S)


def _token(path: Path) -> str:
    given = load_client_settings().token
    if given is not None:
        return given.get_secret_value()
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise DrainRefusedError(
            f"{path} can't be read ({error.strerror}); it holds the operator's token, which HDET_TOKEN can "
            "also name"
        ) from error
