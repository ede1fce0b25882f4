"""Reaches the controller: its actor through Ray, its listener over HTTP, both on this machine.

A head that has just started, or one on a busy machine, may refuse connections for a while. What may pass is
tried again within a bound; only then is it said, with what was waited for.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from hdet_service.cluster_state import ClusterError, Running, UnreachableError
from hdet_service.head import head_environment

START_TIMEOUT_S = 120.0
"""How long a start waits for Ray, and then for the service."""
_CONTROL_TIMEOUT_S = 120.0
_PAUSE_S = 1.0


def is_ready(url: str, timeout_s: float = 6.0) -> bool:
    """Whether ``/readyz`` answers with 200."""
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=timeout_s) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def control(running: Running, request: dict[str, Any]) -> dict[str, Any]:
    """Ask `actor_control` something, once.

    Raises:
        UnreachableError: Ray or the actor did not answer; it may later.
        ClusterError: it could not do it; says what it said.
    """
    settings = running.settings
    asked = {**request, "address": running.address, "settings": settings.model_dump(mode="json")}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "hdet_service.actor_control"],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            timeout=_CONTROL_TIMEOUT_S,
            env=head_environment(settings, running.cluster_id),
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise UnreachableError(
            f"Ray at {running.address} does not answer within {_CONTROL_TIMEOUT_S:g} s"
        ) from error
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise ClusterError(
            f"Ray at {running.address} refused: {lines[-1][:500] if lines else done.returncode}"
        )
    answer: dict[str, Any] = json.loads(done.stdout)
    if "unreachable" in answer:
        raise UnreachableError(f"Ray at {running.address} does not answer: {answer['unreachable']}")
    if "error" in answer:
        raise ClusterError(f"the controller on Ray at {running.address} did not start: {answer['error']}")
    return answer


def control_patiently(
    running: Running, request: dict[str, Any], ask: Callable[..., dict[str, Any]] = control
) -> dict[str, Any]:
    """The same, again and again while it may still come.

    Raises:
        ClusterError: our head has ended, `START_TIMEOUT_S` are over, or it could not do it.
    """

    def is_pointless() -> str | None:
        head = running.head
        if head is None or head.is_alive():
            return None
        return f"Ray's head has ended meanwhile; {running.settings.home / 'head.log'} says why"

    return patiently(
        lambda: ask(running, request),
        waiting_for=f"Ray at {running.address} to take a connection and the controller's actor to answer",
        is_pointless=is_pointless,
    )


def patiently(
    ask: Callable[[], dict[str, Any]],
    *,
    waiting_for: str,
    is_pointless: Callable[[], str | None] = lambda: None,
    within_s: float = START_TIMEOUT_S,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
    """Ask until there is an answer.

    Args:
        ask: Raises `UnreachableError` while there is none.
        waiting_for: What an error says that it waited for.
        is_pointless: Why no answer can come any more, or None.
        within_s: The bound, in seconds; a call that is under way is waited for.
        clock: Seconds, monotonic.
        sleep: Waits so many seconds.

    Raises:
        ClusterError: none came.
    """
    began_s = clock()
    while True:
        try:
            return ask()
        except UnreachableError as error:
            why = is_pointless()
            if why is not None:
                raise ClusterError(f"{error}. {why}") from error
            if clock() - began_s >= within_s:
                raise ClusterError(f"waited {within_s:g} s for {waiting_for}. Newest try: {error}") from error
        sleep(_PAUSE_S)
