"""`hdet up --supervise`: stays in the foreground and brings back what is gone.

A head that has died is replaced, an actor that Ray has given up is made anew, and a port that something else
sits on is said, and taken as soon as it is free. The state comes back from the database each time.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import FrameType

from hdet_ray.exceptions import HDETError
from hdet_service import cluster
from hdet_service.cluster_state import PortTakenError, Running, write_state
from hdet_service.processes import ProcessId, holder_of
from hdet_service.reaching import control, is_ready

logger = logging.getLogger(__name__)

POLL_S = 1.0
_DEAF_S = 15.0
"""An actor that Ray restarts by itself answers again within seconds; after this long it is looked at."""
_BACKOFF_MAX_S = 30.0


@dataclass(slots=True)
class Supervisor:
    """Watches one service.

    Args:
        running: What `up` has started.
        say: Told what happens, for people.
        num_cpus: Of a new head.
    """

    running: Running
    say: Callable[[str], None]
    num_cpus: int | None = None

    def run(self, ending: threading.Event) -> None:
        """Watch until ``ending`` is set, then end the service."""
        self.running = replace(self.running, supervisor=ProcessId.of(_own_pid()))
        write_state(self.running)
        deaf_since: float | None = None
        failures = 0
        try:
            while not ending.wait(min(POLL_S * 2**failures, _BACKOFF_MAX_S) if failures else POLL_S):
                try:
                    deaf_since = self.look(time.monotonic(), deaf_since)
                    failures = 0
                except HDETError as error:
                    failures += 1
                    self.say(f"not healed yet: {error}")
        finally:
            self.say("Ending the service …")
            # On a cluster that was joined training goes on, and another supervisor may follow.
            cluster.down(self.running.settings.home, stops_drivers=False)

    def look(self, now_s: float, deaf_since: float | None) -> float | None:
        """One look.

        Returns:
            Since when the service hasn't answered; None where it does.
        """
        head = self.running.head
        if head is not None and not head.is_alive():
            self.say("Ray's head is gone: starting another")
            cluster.keep_logs(self.running)
            head.stop()
            self.running = cluster.with_new_head(self.running, num_cpus=self.num_cpus)
            cluster.ensure_actor(self.running)
            self.say(f"back at {self.running.url}")
            return None
        if is_ready(self.running.settings.local_url):
            return None
        if deaf_since is None or now_s - deaf_since < _DEAF_S:
            return deaf_since if deaf_since is not None else now_s
        self._heal_actor()
        return None

    def _heal_actor(self) -> None:
        settings = self.running.settings
        try:
            cluster.check_port(settings)
        except PortTakenError:
            told = control(self.running, {"action": "status"})
            if told.get("is_there") and not told.get("is_open"):
                self.say(
                    f"port {settings.port} is taken by {holder_of(settings.port)}: waiting until it is free"
                )
                return
        self.say("the service does not answer: looking after its actor")
        cluster.ensure_actor(self.running, is_patient=False)
        self.say(f"back at {self.running.url}")


def supervise(running: Running, say: Callable[[str], None], *, num_cpus: int | None = None) -> None:
    """Watch in the foreground until Ctrl-C or SIGTERM, then end the service."""
    ending = threading.Event()

    def end(_: int, __: FrameType | None) -> None:
        ending.set()

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        Supervisor(running, say, num_cpus).run(ending)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _own_pid() -> int:
    import os

    return os.getpid()
