"""``python -m hdet_service.actor_control``: finds, makes or ends the controller's actor, then leaves.

A process of its own, because one that is connected to Ray ends when Ray's head does, and
`hdet up --supervise` has to outlive heads. Reads a JSON object on stdin, prints one on stdout.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from typing import Any

import ray
from ray.exceptions import AuthenticationError, GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hdet_service.launches import ACTOR_NAME, ACTOR_NAMESPACE

_STATUS_TIMEOUT_S = 20.0


def main() -> int:
    """One request: ``{"action": "ensure" | "status" | "end", "address": …, "settings": …}``.

    The answer is what was asked for, ``{"unreachable": …}`` where Ray or the actor did not answer (it may
    later), or ``{"error": …}``.
    """
    request = json.load(sys.stdin)
    json.dump(_answer(request), sys.stdout)
    return 0


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    actions = {"ensure": ensure, "status": status, "end": end}
    try:
        _connect(request["address"])
    except AuthenticationError as error:
        return {"error": _brief(error)}
    except (OSError, RuntimeError, RayError) as error:  # a head that is slow says any of these
        return {"unreachable": _brief(error)}
    try:
        return actions[request["action"]](request)
    except GetTimeoutError:
        return {"unreachable": f"the controller's actor said nothing for {_STATUS_TIMEOUT_S:g} s"}
    except RayError as error:
        return {"error": _brief(error)}
    finally:
        ray.shutdown()


def _connect(address: str) -> None:
    ray.init(
        address=address,
        namespace=ACTOR_NAMESPACE,
        log_to_driver=False,
        logging_level=logging.ERROR,
        configure_logging=False,
    )


def ensure(request: dict[str, Any]) -> dict[str, Any]:
    """The actor that is there, or a new one; ``is_new`` says which.

    Raises:
        GetTimeoutError: it is there and says nothing, and the caller is patient: it may be starting.
    """
    found = _find()
    if found is not None:
        try:
            return {"is_new": False, **_told(found)}
        except RayError as error:
            if isinstance(error, GetTimeoutError) and request.get("is_patient"):
                raise
        ray.kill(found, no_restart=True)  # dead for ever, or deaf: its name has to be free
    from hdet_service.actor import ControllerActor

    actor: Any = (
        ray.remote(ControllerActor)
        .options(
            name=ACTOR_NAME,
            namespace=ACTOR_NAMESPACE,
            lifetime="detached",
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(_head_node(), soft=False),
            # Ray lets all its workers yield to others; this one answers workers that wait.
            runtime_env={"env_vars": {"RAY_worker_niceness": "0"}},
        )
        .remote(json.dumps(request["settings"]))
    )
    if request.get("admit"):
        actor.admit.remote()  # ends a drain, as soon as it serves
    return {"is_new": True, **_told(actor)}


def status(request: dict[str, Any]) -> dict[str, Any]:
    """What the actor says of itself; ``is_there`` false where there is none that answers.

    Raises:
        GetTimeoutError: it is there and says nothing, and the caller is patient.
    """
    found = _find()
    if found is None:
        return {"is_there": False}
    try:
        return {"is_there": True, **_told(found)}
    except RayError as error:
        if isinstance(error, GetTimeoutError) and request.get("is_patient"):
            raise
    return {"is_there": False}


def end(request: dict[str, Any]) -> dict[str, Any]:
    """Shut the actor down and take it off the cluster, and the drivers that it started if asked to."""
    found = _find()
    if found is None:
        return {"is_there": False}
    with contextlib.suppress(RayError):  # it is killed all the same
        ray.get(found.shutdown.remote(), timeout=_STATUS_TIMEOUT_S)
    ray.kill(found, no_restart=True)
    return {"is_there": True, "stopped": _stop_drivers() if request["stops_drivers"] else []}


def _brief(error: Exception) -> str:
    """What was raised over there, without the stack."""
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[0][:500] if lines else ''}"


def _find() -> Any:
    try:
        return ray.get_actor(ACTOR_NAME, namespace=ACTOR_NAMESPACE)
    except ValueError:
        return None


def _told(actor: Any) -> dict[str, Any]:
    told: dict[str, Any] = ray.get(actor.status.remote(), timeout=_STATUS_TIMEOUT_S)
    return told


def _head_node() -> str:
    """The node that runs the head; its resource is how Ray marks it."""
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        if node["Alive"] and "node:__internal_head__" in node["Resources"]:
            return str(node["NodeID"])
    return str(ray.get_runtime_context().get_node_id())


def _stop_drivers() -> list[str]:
    from pathlib import Path

    from hdet_service.starter import RayStarter, connect_to_ray

    starter = RayStarter(
        gcs_address=ray.get_runtime_context().gcs_address,
        logs_path=None,
        scratch=Path(),
        connect=connect_to_ray,
    )
    live = [sid for sid, driver in starter.states().items() if not driver.status.has_ended]
    for sid in live:
        starter.stop(sid)
    return live


if __name__ == "__main__":
    sys.exit(main())
