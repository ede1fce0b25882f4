"""Calls to the controller's actor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import RayError

from hdet_ray.train.protocol import ControlUnavailable


class ActorTransport:
    """Calls ``call(kind, request)`` of a named actor.

    The handle goes on working when the actor was restarted; one of an actor that is gone for ever is looked
    up again.

    Args:
        namespace: Ray namespace of the actor.
        name: Its name there.
        timeout_s: How long a call may take.
    """

    def __init__(self, namespace: str, name: str, timeout_s: float) -> None:
        self._namespace = namespace
        self._name = name
        self._timeout_s = timeout_s
        self._handle: Any = None

    def call(self, kind: str, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """The actor's answer.

        Raises:
            ControlUnavailable: there is no such actor, it did not answer in time, or it raised.
        """
        try:
            if self._handle is None:
                self._handle = ray.get_actor(self._name, namespace=self._namespace)
            answer: Mapping[str, Any] = ray.get(
                self._handle.call.remote(kind, dict(request)), timeout=self._timeout_s
            )
        except (RayError, ValueError, ConnectionError) as error:
            # What a task of the actor raised is a RayError too.
            self._handle = None
            raise ControlUnavailable(
                f"actor {self._namespace}/{self._name}: {type(error).__name__}: {error}"
            ) from error
        return answer
