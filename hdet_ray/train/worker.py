"""A worker: what stands around the user's loop in each process of an `HDETTrainer`.

The session that the scheduler's constructor reads, the bridge to Ray's reports, this rank's beats; and for
a worker that is left over by the replicas, following Ray's collective calls in the loop's place.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.train.v2._internal.execution.context import get_train_context
from ray.train.v2._internal.execution.train_fn_utils import get_train_fn_utils
from ray.train.v2._internal.util import construct_user_exception_with_traceback
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from hdet_ray.exceptions import CollectiveError, RunPaused
from hdet_ray.optim.mesh import GROUP_DIM, REPLICA_DIM, Session, check_ranks_per_replica, set_session
from hdet_ray.train.elastic import SHORTEST_COLLECTIVE_TIMEOUT_S
from hdet_ray.train.liveness import Liveness, node_name
from hdet_ray.train.process_group import Place, current_place
from hdet_ray.train.reports import ReportBridge, bridge_reports
from hdet_ray.train.surplus import Leader, follow, show_members_only

logger = logging.getLogger(__name__)

TrainLoop = Callable[[], Any] | Callable[[dict[str, Any]], Any]

_STORE_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """What `HDETTrainer` was told and its workers need."""

    ranks_per_replica: int
    collective_timeout_s: float
    checkpoint_every_rounds: int
    checkpoint_sync: bool
    digest_every_rounds: int | None


def within_session(user_loop: TrainLoop, settings: WorkerSettings) -> TrainLoop:
    """The user's loop as a worker runs it."""

    @functools.wraps(user_loop)  # Ray reads the signature to see whether the loop takes a config
    def loop(*config: Any) -> Any:
        place = current_place()
        with ExitStack() as stack:
            liveness = _beating(place, settings, stack)
            if place is not None and place.is_surplus:
                _idle(place)
                return None
            _lead_surplus(place, stack)
            bridge = bridge_reports(settings.checkpoint_every_rounds, settings.checkpoint_sync)
            bridge.digest_every_rounds = settings.digest_every_rounds
            return _run(user_loop, config, settings, bridge, liveness)

    return loop


def _run(
    user_loop: Callable[..., Any],
    config: tuple[Any, ...],
    settings: WorkerSettings,
    bridge: ReportBridge,
    liveness: Liveness | None,
) -> Any:
    set_session(
        Session(mesh=_mesh(settings.ranks_per_replica), collective_timeout_s=settings.collective_timeout_s)
    )
    bridge.liveness = liveness
    try:
        return user_loop(*config)
    except RunPaused:
        return None  # its checkpoint is stored: the run ends here, and cleanly
    except Exception as error:
        named = None if liveness is None else liveness.named(error)
        if named is not None:
            raise named from error
        raise
    finally:
        set_session(None)
        bridge.close()


def _beating(place: Place | None, settings: WorkerSettings, stack: ExitStack) -> Liveness | None:
    """This rank's beats, from now until the stack ends; alone there is nobody to listen."""
    if place is None or place.num_workers == 1:
        return None
    liveness = Liveness(
        place.connect(_STORE_TIMEOUT_S),
        rank=place.rank,
        num_ranks=place.num_workers,
        node=node_name(),
        hang_s=max(settings.collective_timeout_s, SHORTEST_COLLECTIVE_TIMEOUT_S) / 2,
        on_hang=_fail_at_once,
    )
    liveness.start()
    # A rank that has failed goes on beating until Ray ends it: the others still look for the silent one.
    stack.push(lambda kind, *_: liveness.stop() if kind is None else None)
    return liveness


def _fail_at_once(error: CollectiveError) -> None:
    """Tell Ray's controller now: the loop's thread waits in a collective, and nothing can call it out."""
    queue = get_train_context().execution_context.training_thread_runner.get_exception_queue()
    try:
        raise error
    except CollectiveError as raised:  # Ray writes down the traceback of what is being handled
        queue.put(construct_user_exception_with_traceback(raised))


def _lead_surplus(place: Place | None, stack: ExitStack) -> None:
    if place is None or not place.num_surplus:
        return
    utils = get_train_fn_utils()
    show_members_only(utils, place.num_ranks)
    if place.rank == 0:
        leader = Leader(place.connect(_STORE_TIMEOUT_S))
        leader.announce_calls_of(utils)
        stack.callback(leader.end)


def _idle(place: Place) -> None:
    logger.info("left over: rank=%d of %d; %d form replicas", place.rank, place.num_workers, place.num_ranks)
    calls = follow(place.connect(_STORE_TIMEOUT_S), get_train_fn_utils())
    logger.info("left over until the end: rank=%d calls=%d", place.rank, calls)


def _mesh(ranks_per_replica: int) -> DeviceMesh | None:
    if ranks_per_replica == 1:
        return None  # every rank is a replica: what the scheduler assumes by itself
    num_replicas = check_ranks_per_replica(ray.train.get_context().get_world_size(), ranks_per_replica)
    device = ray.train.torch.get_device().type
    return init_device_mesh(
        device, (num_replicas, ranks_per_replica), mesh_dim_names=(REPLICA_DIM, GROUP_DIM)
    )
