"""The controller as a Ray actor: one process on the head that hosts HTTP on its own event loop.

Ray starts it anew whenever its process dies, by calling ``__init__`` again, and gives it up for good if that
raises: so `__init__` only begins, and what can fail is `serving`'s.

Whoever takes a handle of an actor imports its class. The first worker of every job does so, in the middle of
its first step: so nothing is imported here that takes long, and what serves is imported where it serves.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hdet_service.settings import Settings


class ControllerActor:
    """What `ray.remote` makes an actor of.

    Args:
        settings_json: `Settings` as JSON: a restarted process gets the same.
    """

    async def __init__(self, settings_json: str) -> None:  # type: ignore[misc]  # Ray awaits it
        from hdet_service.serving import Serving

        logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        logging.getLogger("hdet_service").setLevel(logging.INFO)
        self._serving = Serving(settings_json)

    async def call(self, kind: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """See `Serving.call`."""
        return await self._serving.call(kind, request)

    async def status(self) -> dict[str, Any]:
        """See `Serving.status`."""
        return await self._serving.status()

    async def admit(self) -> None:
        """See `Serving.admit`."""
        await self._serving.admit()

    async def shutdown(self) -> None:
        """See `Serving.shutdown`."""
        await self._serving.shutdown()


def listening_socket(settings: Settings) -> socket.socket:
    """The listening socket.

    Raises:
        OSError: the port is taken, or the address isn't this machine's.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # The protocol is named since asyncio leaves Nagle's algorithm on where it reads 0 (44 ms an answer).
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        # A killed controller's connections linger on the port for half a minute.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener
