"""How many workers there is room for: asked anew after a loss, without nodes that go, in no hurry to grow."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray")

from ray.train import ScalingConfig
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision

from hdet_ray.train import scaling
from hdet_ray.train.scaling import FreshScalingPolicy, is_warming_up, unreachable


class Coordinator:
    """Ray's, with a view of its own that is as old as it is not renewed."""

    def __init__(self, nodes: Mapping[str, int]) -> None:
        self.nodes = dict(nodes)
        self._seen = dict(nodes)
        self.get_reserved_resources = self

    def remote(self, requester_id: str | None, recompute: bool = False) -> Any:
        if recompute:
            self._seen = dict(self.nodes)
        return {node: {"CPU": float(cpus)} for node, cpus in self._seen.items()}


class World:
    """A cluster that the policy looks at."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **nodes: int) -> None:
        self.coordinator = Coordinator(nodes)
        self.silent: set[str] = set()
        self.draining: set[str] = set()
        self.started: list[tuple[str, int]] = []
        self.now_s = 1000.0
        monkeypatch.setattr("ray.get", lambda value, timeout: value)
        monkeypatch.setattr(
            "ray._private.state.state.get_draining_nodes", lambda: dict.fromkeys(self.draining)
        )
        monkeypatch.setattr(scaling, "addresses_of", lambda nodes: dict.fromkeys(nodes))
        monkeypatch.setattr(scaling, "unreachable", lambda addresses: self.silent & addresses.keys())
        monkeypatch.setattr("time.monotonic", lambda: self.now_s)
        monkeypatch.setattr(
            FreshScalingPolicy, "_start_ahead", lambda _, node, resources: self.started.append(node)
        )

    def policy(self, warm_up_s: float = 5.0) -> FreshScalingPolicy:
        config = ScalingConfig(num_workers=(1, 8), elastic_resize_monitor_interval_s=1)
        policy = FreshScalingPolicy(config, warm_up_s)
        policy._coordinator_client = SimpleNamespace(  # type: ignore[assignment]
            maybe_send_resource_request=lambda *_: None, _autoscaling_coordinator=self.coordinator
        )
        return policy

    def decide(self, policy: FreshScalingPolicy, *group: str, after_s: float = 2.0) -> int | None:
        """Size to change to while a group with a worker on each of these nodes runs; None leaves it."""
        self.now_s += after_s
        workers = [SimpleNamespace(metadata=SimpleNamespace(node_id=node)) for node in group]
        state = SimpleNamespace(workers=workers, num_workers=len(workers), start_time=0.0)
        decision = policy.make_decision_for_running_worker_group(state, None)
        return None if isinstance(decision, NoopDecision) else decision.num_workers


def size_without_a_group(policy: FreshScalingPolicy) -> int:
    decision = policy.make_decision_for_non_running_worker_group()
    assert isinstance(decision, ResizeDecision)
    return decision.num_workers


def test_after_a_loss_the_size_is_that_of_the_cluster_as_it_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, a=2, b=1)
    policy = world.policy()
    assert world.decide(policy, "a", "a", "b") is None
    del world.coordinator.nodes["b"]
    world.now_s += 0.1  # Ray's policy would take its answer of a moment ago
    policy.before_controller_execute_failure_decision(None)
    assert size_without_a_group(policy) == 2


@pytest.mark.parametrize("kind", ["silent", "draining"])
def test_nothing_is_started_on_a_node_that_goes_or_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    world = World(monkeypatch, a=2, b=1)
    getattr(world, kind).add("b")
    policy = world.policy()
    assert size_without_a_group(policy) == 2
    assert world.decide(policy, "a", "a") is None  # nor grown onto
    assert world.decide(policy, "a", "a", after_s=60) is None


def test_a_group_that_works_is_not_shrunk_for_what_others_look_like(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, a=2, b=2)  # reserved there, and placed on c and d
    world.silent.add("b")
    assert world.decide(world.policy(), "c", "c", "d", "d") is None


def test_a_new_node_s_processes_start_before_the_group_grows_onto_it(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, a=2)
    policy = world.policy()
    world.coordinator.nodes["b"] = 1
    assert world.decide(policy, "a", "a") is None
    assert world.started == ["b"]
    assert world.decide(policy, "a", "a", after_s=4) is None
    assert world.decide(policy, "a", "a", after_s=1.5) == 3
    assert world.started == ["b"]


def test_nodes_that_come_in_one_moment_cost_one_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, a=2)
    policy = world.policy()
    world.coordinator.nodes["b"] = 1
    assert world.decide(policy, "a", "a") is None
    world.coordinator.nodes["c"] = 1
    assert world.decide(policy, "a", "a", after_s=4) is None
    assert world.decide(policy, "a", "a", after_s=2) is None
    assert world.decide(policy, "a", "a", after_s=4) == 4


def test_without_warm_processes_the_group_grows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, a=2, b=1)
    assert world.decide(world.policy(warm_up_s=0), "a", "a") == 3
    assert not world.started


def test_nodes_that_keep_coming_hold_the_others_up_for_a_while_only() -> None:
    assert is_warming_up([19.0, 1.0], warm_up_s=5)
    assert not is_warming_up([20.0, 1.0], warm_up_s=5)
    assert not is_warming_up([6.0, 5.0], warm_up_s=5)
    assert not is_warming_up([], warm_up_s=5)


def test_a_raylet_that_takes_no_connection_is_unreachable() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.create_server(("127.0.0.1", 0)) as closed,
    ):
        port = closed.getsockname()[1]
        closed.close()
        addresses = {"there": listening.getsockname(), "gone": ("127.0.0.1", port)}
        assert unreachable(addresses) == {"gone"}
    assert unreachable({}) == set()
