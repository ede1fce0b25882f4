"""The injector's faults on a real cluster: what the library promises for each of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("ray")

from hdet_ray.config import Fixed
from hdet_ray.testing import (
    Act,
    AddNode,
    DriverFaults,
    Fault,
    FillDisk,
    FlipBit,
    RemoveNode,
    SetNan,
    SlowDown,
    read_happened,
)
from tests.ray.elastic_cluster import ElasticCluster
from tests.ray.elastic_loops import ROUND_STEPS
from tests.ray.elastic_runs import ElasticRun

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
HARMED_STEP = 4 * ROUND_STEPS + 2
EQUAL = Fixed(alpha=0.0, sync_every=ROUND_STEPS)
"""Replicas that are equal bit for bit at every step."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[ElasticCluster]:
    with ElasticCluster() as cluster:
        cluster.add(2)
        yield cluster


def finish_after(run: ElasticRun, rounds_after: int = 4) -> None:
    run.wait_for_rounds(2, count=rounds_after, after_step=HARMED_STEP + ROUND_STEPS)
    run.finish()


@pytest.mark.parametrize("where", ["storage", "staging"])
def test_a_full_disk_costs_a_checkpoint_and_the_run_goes_on(
    cluster: ElasticCluster, tmp_path: Path, where: str
) -> None:
    full = Fault(act=FillDisk(where=where), at_step=HARMED_STEP)  # type: ignore[arg-type]
    run = ElasticRun(tmp_path, (1, 2), {"faults": [full]})
    finish_after(run)
    assert len(read_happened(tmp_path / "faults")) == 1
    stored = list((tmp_path / "stored" / "elastic").glob("checkpoint_*/hdet/manifest.json"))
    assert stored, "checkpoints are written again"
    resumed = [line["step"] for line in run.lines() if line["step"] > HARMED_STEP]
    assert min(resumed) == HARMED_STEP + 1


def test_a_flipped_bit_is_found_and_named(cluster: ElasticCluster, tmp_path: Path) -> None:
    flip = Fault(act=FlipBit(parameter="2.weight", element=3), rank=1, at_step=HARMED_STEP)
    run = ElasticRun(tmp_path, (1, 2), {"faults": [flip], "controller": EQUAL}, digest_every_rounds=1)
    finish_after(run)
    told = cluster.controller_log()
    assert "DivergenceError" in told
    assert "2.weight" in told


@pytest.mark.parametrize("act", [SetNan(into="parameter"), SlowDown(pause_s=0.2, for_steps=5)])
def test_what_a_run_can_bear_starts_no_group_again(cluster: ElasticCluster, tmp_path: Path, act: Act) -> None:
    run = ElasticRun(tmp_path, (1, 2), {"faults": [Fault(act=act, rank=1, at_step=HARMED_STEP)]})
    finish_after(run)
    steps = [line["step"] for line in run.lines() if line["replica"] == 0]
    assert len(steps) == len(set(steps))


def test_nodes_go_and_come_at_the_steps_that_were_drawn(cluster: ElasticCluster, tmp_path: Path) -> None:
    cluster.add(1)
    nodes = cluster.nodes()
    faults = [
        Fault(act=RemoveNode(), rank=1, at_step=HARMED_STEP),
        Fault(act=AddNode(), at_step=HARMED_STEP + 20),
    ]
    with DriverFaults(faults, tmp_path / "faults", nodes=nodes):
        run = ElasticRun(tmp_path, (1, 3), {"faults": faults})
        run.wait_for_rounds(3)
        run.wait_for_rounds(2, after_step=HARMED_STEP)
        run.wait_for_rounds(3, after_step=HARMED_STEP + 20)
        run.finish()
    assert [each.fault["kind"] for each in read_happened(tmp_path / "faults")] == ["remove_node", "add_node"]


def test_the_rehearsal_in_the_docs_runs_as_it_stands(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
    script = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)[0]
    (tmp_path / "rehearsal.py").write_text(script, encoding="utf-8")
    alone = {**os.environ, "RAY_ADDRESS": "local"}  # not the other tests' cluster
    done = subprocess.run(
        [sys.executable, "rehearsal.py"],
        cwd=tmp_path,
        env=alone,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = [line.split(": ")[1].split(" on ")[0] for line in done.stdout.splitlines() if "on rank" in line]
    assert sorted(told) == ["kill", "nan", "nan", "slow_down"]
