"""The controller behind HTTP, on the event loop of the process that it is alone in.

Everything that can fail is tried until it works: a port that is taken, a database that another one has.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import uvicorn

from hdet_ray.exceptions import HDETError
from hdet_service.actor import listening_socket
from hdet_service.app import create_app
from hdet_service.controller import SYSTEM, Controller, create_controller
from hdet_service.settings import Settings
from hdet_service.starter import RayStarter, connect_to_ray

logger = logging.getLogger(__name__)

_RETRY_S = 0.3
_SLOW_RETRY_S = 2.0
_BACKLOG = 512


class Serving:
    """Serves from now on; made on the event loop that it serves on.

    Args:
        settings_json: `Settings` as JSON.
    """

    def __init__(self, settings_json: str) -> None:
        self._settings = Settings.model_validate_json(settings_json)
        self._controller: Controller | None = None
        self._server: uvicorn.Server | None = None
        self._problem: str | None = None
        self._is_open = asyncio.Event()
        self._is_ending = False
        self._serving = asyncio.get_running_loop().create_task(self._serve())

    async def call(self, kind: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """What training says; waits while the controller is starting, and callers have their own bounds."""
        await self._is_open.wait()
        if self._controller is None:
            raise RuntimeError("the controller is stopping")
        return await self._controller.call(kind, request)

    async def status(self) -> dict[str, Any]:
        """Whether it serves, and if not, why."""
        controller = self._controller
        return {
            "pid": os.getpid(),
            "home": str(self._settings.home),
            "epoch": None if controller is None else controller.epoch,
            "is_open": self._is_open.is_set(),
            "problem": self._problem,
        }

    async def admit(self) -> None:
        """End a drain: the service was started on purpose."""
        await self._is_open.wait()
        if self._controller is not None:
            await self._controller.jobs.drain(SYSTEM, "hdet up", is_draining=False)

    async def shutdown(self) -> None:
        """Answer what is being answered, close the store, and serve no more."""
        self._is_ending = True
        if self._server is not None:
            self._server.should_exit = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5.0):
                await asyncio.shield(self._serving)

    # ---- inside

    async def _serve(self) -> None:
        """Serve, and start over whatever it was that ended it."""
        while not self._is_ending:
            try:
                with listening_socket(self._settings) as listener:
                    await self._serve_once(listener)
                self._problem = None if self._is_ending else "the server ended by itself"
            except OSError as error:
                self._problem = (
                    f"{self._settings.host}:{self._settings.port} can't be listened on: {error.strerror}"
                )
            except HDETError as error:
                self._problem = str(error)
            except Exception as error:  # nothing may end this loop: nobody would begin it again
                logger.exception("the controller did not start")
                self._problem = f"{type(error).__name__}: {error}"
            if not self._is_ending:
                logger.warning("not serving: %s", self._problem)
                await asyncio.sleep(_RETRY_S if self._controller is None else _SLOW_RETRY_S)

    async def _serve_once(self, listener: socket.socket) -> None:
        controller = create_controller(self._settings, _starter(self._settings))
        try:
            app = create_app(controller)
            config = uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                lifespan="off",
                backlog=_BACKLOG,
                timeout_graceful_shutdown=2,
            )
            self._server = uvicorn.Server(config)
            await controller.start()
            self._controller, self._problem = controller, None
            self._is_open.set()
            logger.info("serving: url=%s epoch=%d", self._settings.public_url, controller.epoch)
            await self._server.serve(sockets=[listener])
        finally:
            self._is_open.clear()
            self._controller = None
            await controller.stop()


def _starter(settings: Settings) -> RayStarter:
    context = ray.get_runtime_context()
    return RayStarter(
        gcs_address=settings.ray_address or context.gcs_address,
        logs_path=_rays_logs(),
        scratch=settings.home / "scratch",
        connect=connect_to_ray,
    )


def _rays_logs() -> Path | None:
    """Where this node's drivers write. Ray names it to its own parts only."""
    from ray._private import worker

    node = worker._global_node
    return None if node is None else Path(node.get_logs_dir_path())
