"""Workers that die or stop: the run goes on without them, and says which it was."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("ray")

from hdet_ray.testing import Fault, Kill, Stop, read_happened
from tests.ray.elastic_cluster import ElasticCluster
from tests.ray.elastic_loops import ROUND_STEPS
from tests.ray.elastic_runs import ElasticRun

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

HARMED_STEP = 12
"""In mid-round: rounds have 5 steps."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[ElasticCluster]:
    with ElasticCluster() as cluster:
        cluster.add(3)
        yield cluster


@pytest.mark.parametrize("rank", [0, 2])
def test_a_stopped_worker_is_named_and_the_run_goes_on(
    cluster: ElasticCluster, tmp_path: Path, rank: int
) -> None:
    stop = Fault(act=Stop(), rank=rank, at_step=HARMED_STEP)
    run = ElasticRun(tmp_path, (1, 3), {"faults": [stop]}, collective_timeout_s=20)
    run.wait_for_rounds(3, after_step=HARMED_STEP + 10)
    run.finish()
    pid = read_happened(tmp_path / "faults")[0].pid
    assert not os.path.exists(f"/proc/{pid}")  # nobody had to kill it
    told = cluster.controller_log()
    assert f"rank {rank} " in told
    assert f"pid {pid}) has been silent for" in told
    assert f"waits in round {HARMED_STEP // ROUND_STEPS} at step {HARMED_STEP}" in told


@pytest.mark.parametrize(("is_sync", "first_repeated"), [(False, 0), (True, 10)])
def test_a_killed_worker_costs_the_steps_since_the_newest_checkpoint(
    cluster: ElasticCluster, tmp_path: Path, is_sync: bool, first_repeated: int
) -> None:
    kill = Fault(act=Kill(), rank=1, at_step=HARMED_STEP)
    run = ElasticRun(tmp_path, (1, 3), {"faults": [kill]}, checkpoint_sync=is_sync)
    run.wait_for_rounds(3, after_step=HARMED_STEP + 10)
    run.finish()
    repeats = sorted(line["step"] for line in run.lines() if line["replica"] == 0)
    twice = {step for step in repeats if repeats.count(step) > 1}
    assert HARMED_STEP in twice
    assert twice <= set(range(first_repeated, HARMED_STEP + 1))


def test_a_node_that_says_it_will_go_finds_the_run_saved(cluster: ElasticCluster, tmp_path: Path) -> None:
    leaving = cluster.add(1)
    run = ElasticRun(tmp_path, (1, 4), checkpoint_every_rounds=100_000)
    run.wait_for_rounds(4)
    noticed_at = run.newest_step()
    cluster.announce_preemption(leaving, in_s=60)
    # The first step after a boundary that was asked for: by then Ray knows its checkpoint.
    run.wait_for(lambda _: run.newest_step() >= (saved_step(tmp_path) or math.inf), "a step after a save")
    cluster.remove(leaving)
    run.wait_for_rounds(3)
    run.finish()
    resumed_at = min(line["step"] for line in run.lines() if line["replicas"] == 3)
    assert resumed_at >= noticed_at
    assert resumed_at % ROUND_STEPS == 0


def saved_step(out: Path) -> int | None:
    """The first boundary that was saved, if one was: the step that follows it."""
    manifests = (out / "stored" / "elastic").glob("checkpoint_*/hdet/manifest.json")
    return min((json.loads(path.read_text())["step"] for path in manifests), default=None)
