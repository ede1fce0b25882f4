"""How many workers there is room for now, and not some seconds ago.

Ray's elastic policy asks a coordinator whose view of the cluster is up to 20 s old, and a node that dies
without a word stays in it until Ray declares it dead, some 15 s more. Meanwhile the policy starts groups that
can't be placed, and each waits out its start timeout. This one asks for a fresh view first, which the
coordinator offers, and leaves out nodes that are about to go or whose raylet does not answer.

A node that comes is given a moment before the group grows onto it: its processes start while the group still
trains, and what comes in the same moment costs one restart.
"""

from __future__ import annotations

import copy
import logging
import socket
import threading
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
)

from hdet_ray.train.warm import prestart_like, raylets

logger = logging.getLogger(__name__)

Address = tuple[str, int]

_CALL_TIMEOUT_S = 5.0
_CONNECT_TIMEOUT_S = 1.0
_MOST_AT_ONCE = 32
WARM_UP_S = 8.0
"""What processes take to start and to import torch; the group trains meanwhile, so more costs little."""
_LONGEST_WARM_UPS = 4
"""Nodes that keep coming hold up those that are there for so many warm-ups at most."""


class FreshScalingPolicy(ElasticScalingPolicy):
    """Ray's elastic policy on a fresh view of the cluster.

    Args:
        scaling_config: As Ray takes it.
        warm_up_s: How long a new node is there before the group grows onto it, with its processes started
            ahead; 0 starts none and waits for nothing.
    """

    def __init__(self, scaling_config: Any, warm_up_s: float = WARM_UP_S) -> None:
        super().__init__(scaling_config)
        self._warm_up_s = warm_up_s
        self._workers: list[Any] = []
        """Of the group that runs; empty while there is none."""
        self._came_at: dict[str, float] = {}
        """When nodes that the group could grow onto were first seen, in monotonic seconds."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """Ask for nodes in the name of the run, not of this start of it.

        A driver that was killed leaves its request behind, and the coordinator keeps nodes free for it for
        three minutes; under one name its successor takes it over.
        """
        config = train_run_context.run_config
        named = copy.copy(train_run_context)
        object.__setattr__(named, "run_id", f"{config.storage_path}/{config.name}")  # it is frozen
        super().after_controller_start(named)

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        self._workers = []
        return super().make_decision_for_non_running_worker_group()

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        self._workers = worker_group_state.workers
        decision: ScalingDecision = super().make_decision_for_running_worker_group(
            worker_group_state, worker_group_status
        )
        grows = isinstance(decision, ResizeDecision) and decision.num_workers > len(self._workers)
        if not grows or not self._is_warming_up():
            return decision
        self._latest_monitor_time = float("-inf")  # ask again at the next poll, not an interval later
        return NoopDecision()

    def before_controller_execute_failure_decision(self, failure_decision: Any) -> None:
        """A group is lost, or was not started: what was known before counts no more."""
        self._latest_reserved_resources_query_time = float("-inf")

    def _get_reserved_resources(self) -> Any:
        age_s = time.monotonic() - self._latest_reserved_resources_query_time
        if age_s >= self.GET_RESERVED_RESOURCES_INTERVAL_S:
            self._renew()
        reserved = super()._get_reserved_resources()
        if not reserved:
            return reserved
        gone = self._going_or_gone(reserved.keys() - self._in_use())
        there = {node: resources for node, resources in reserved.items() if node not in gone}
        # A group may lie elsewhere than the coordinator thinks: no reason to shrink one that works.
        return there if self._count_possible_workers(there) >= len(self._workers) else reserved

    def _in_use(self) -> set[str]:
        return {worker.metadata.node_id for worker in self._workers}

    def _renew(self) -> None:
        """Have the coordinator look at the cluster now."""
        try:
            ray.get(
                self._autoscaling_coordinator.get_reserved_resources.remote(
                    self._requester_id, recompute=True
                ),
                timeout=_CALL_TIMEOUT_S,
            )
        except (RayError, TypeError) as error:  # Ray's inner interface: without it, its view is an old one
            logger.warning("the view of the cluster is not renewed: error=%s", error)

    def _going_or_gone(self, nodes: Collection[str]) -> set[str]:
        """Of these, the ones where nothing should be started. Nodes whose workers answer need no look."""
        try:
            addresses = addresses_of(nodes)
            going = nodes & ray._private.state.state.get_draining_nodes().keys()
        except RayError as error:
            logger.warning("nodes were not looked at: error=%s", error)
            return set()
        silent = unreachable(addresses)
        if going or silent:
            logger.info("nodes left out: drained=%s silent=%s", sorted(going), sorted(silent))
        return going | silent

    def _is_warming_up(self) -> bool:
        """Whether nodes that the group would grow onto have come just now; their processes are started."""
        reserved = self._get_reserved_resources() or {}
        now = time.monotonic()
        new = reserved.keys() - self._in_use()
        for node in sorted(new - self._came_at.keys()):
            logger.info("a node to grow onto: node=%s warm_up_s=%g", node, self._warm_up_s)
            if self._warm_up_s:
                self._start_ahead(node, reserved[node])
        self._came_at = {node: self._came_at.get(node, now) for node in new}
        return is_warming_up([now - came_at for came_at in self._came_at.values()], self._warm_up_s)

    def _start_ahead(self, node: str, resources: Mapping[str, float]) -> None:
        each = self.scaling_config._resources_per_worker_not_none
        count = int(min(resources.get(name, 0) // amount for name, amount in each.items() if amount > 0))
        # In a thread: the controller polls its workers meanwhile.
        threading.Thread(target=prestart_like, args=(self._workers[0], node, count), daemon=True).start()


def is_warming_up(ages_s: Collection[float], warm_up_s: float) -> bool:
    """Whether nodes that have been there for so long are still waited for."""
    return bool(ages_s) and min(ages_s) < warm_up_s and max(ages_s) < _LONGEST_WARM_UPS * warm_up_s


def addresses_of(nodes: Collection[str]) -> dict[str, Address]:
    """Where the raylets of these nodes listen; of those that Ray calls alive."""
    if not nodes:
        return {}
    return {node: address for node, address in raylets().items() if node in nodes}


def unreachable(
    addresses: Mapping[str, Address], connect: Callable[..., socket.socket] = socket.create_connection
) -> set[str]:
    """Nodes whose raylet takes no connection: its process has ended, or the machine is cut off.

    Args:
        addresses: Host and port of each node's raylet.
        connect: `socket.create_connection`, or its like.
    """

    def is_silent(address: Address) -> bool:
        try:
            connect(address, timeout=_CONNECT_TIMEOUT_S).close()
        except OSError:
            return True
        return False

    if not addresses:
        return set()
    with ThreadPoolExecutor(min(len(addresses), _MOST_AT_ONCE)) as threads:
        answers = dict(zip(addresses, threads.map(is_silent, addresses.values()), strict=True))
    return {node for node, silent in answers.items() if silent}
