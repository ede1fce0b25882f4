"""Losses that leave little: all workers at once, rank 0's node, nodes that flap, no node at all."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("ray")

from tests.ray.elastic_cluster import ElasticCluster
from tests.ray.elastic_loops import ROUND_STEPS
from tests.ray.elastic_runs import ElasticRun

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def cluster() -> Iterator[ElasticCluster]:
    with ElasticCluster() as cluster:
        yield cluster


def test_all_workers_lost_at_once_go_on_from_the_newest_checkpoint(
    cluster: ElasticCluster, tmp_path: Path
) -> None:
    cluster.add(3)
    run = ElasticRun(tmp_path, (1, 3), checkpoint_sync=True)
    run.wait_for_rounds(3)
    first_group = pids(tmp_path)
    kill(first_group)
    lost_at = run.newest_step()
    run.wait_for_rounds(3, after_step=lost_at)
    run.finish()
    assert resumed_at(tmp_path, first_group) >= lost_at - ROUND_STEPS
    require_planned_values(run.lines())


def test_a_truncated_newest_checkpoint_costs_the_rounds_since_the_one_before(
    cluster: ElasticCluster, tmp_path: Path
) -> None:
    cluster.add(2)
    run = ElasticRun(tmp_path, (1, 2), checkpoint_sync=True)
    run.wait_for_rounds(2, count=4)
    first_group = pids(tmp_path)
    kill(first_group)
    saved = {
        json.loads(path.read_text())["step"]: path
        for path in (tmp_path / "stored" / "elastic").glob("checkpoint_*/hdet/manifest.json")
    }
    before, newest = sorted(saved)[-2:]
    weights = saved[newest].with_name("model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-3])
    run.wait_for_rounds(2, after_step=newest)
    run.finish()
    assert resumed_at(tmp_path, first_group) == before


def test_the_loss_of_rank_0_s_node_leaves_a_run_that_goes_on(cluster: ElasticCluster, tmp_path: Path) -> None:
    nodes = [cluster.add(1), cluster.add(1)]
    run = ElasticRun(tmp_path, (1, 2))
    run.wait_for_rounds(2)
    (rank_0,) = pids(tmp_path, "2x1-0-*.jsonl")
    raylet = psutil.Process(rank_0).ppid()
    (node,) = (n for n in nodes if n.all_processes["raylet"][0].process.pid == raylet)
    lost_at = run.newest_step()
    cluster.remove(node)
    run.wait_for_rounds(1, after_step=lost_at)
    run.finish()
    require_planned_values(run.lines())


def test_a_node_that_flaps_breaks_neither_schedule_nor_run(cluster: ElasticCluster, tmp_path: Path) -> None:
    cluster.add(1)
    run = ElasticRun(tmp_path, (1, 2))
    for _ in range(3):
        flapping = cluster.add(1)
        run.wait_for_rounds(2, count=1, after_step=run.newest_step())
        cluster.remove(flapping)
        run.wait_for_rounds(1, count=1, after_step=run.newest_step())
    run.finish()
    lines = run.lines()
    require_planned_values(lines)
    assert {line["step"] for line in lines} == set(range(max(line["step"] for line in lines) + 1))


def test_without_room_a_run_waits_says_so_and_takes_the_first_node(
    cluster: ElasticCluster, tmp_path: Path
) -> None:
    run = ElasticRun(tmp_path, (1, 2))
    run.wait_for(
        lambda _: "ready resources for 0 workers" in cluster.controller_log(), "a word of the waiting"
    )
    assert not run.lines()
    cluster.add(1)
    run.wait_for_rounds(1, count=1)
    run.finish()


def pids(out: Path, pattern: str = "*.jsonl") -> set[int]:
    """Processes that have trained so far."""
    return {pid_of(path) for path in out.glob(pattern)}


def pid_of(path: Path) -> int:
    """The process that wrote a file of lines."""
    return int(path.stem.rpartition("-")[2])


def kill(processes: set[int]) -> None:
    for pid in processes:
        os.kill(pid, signal.SIGKILL)


def resumed_at(out: Path, first_group: set[int]) -> int:
    """First step of the processes that came after the first group."""
    later = [path.read_text() for path in out.glob("*.jsonl") if pid_of(path) not in first_group]
    return min(json.loads(line)["step"] for text in later for line in text.splitlines())


def require_planned_values(lines: list[dict[str, Any]]) -> None:
    for line in lines:
        assert line["lr"] == pytest.approx(line["planned"], rel=1e-6), line
