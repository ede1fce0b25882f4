"""Elastic runs on a real cluster: workers come and go, the schedule never breaks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")

import torch

from hdet_ray.train.layout import LEDGER_FILE
from hdet_ray.view.samples import SamplesAccount
from tests.ray.chaos_accounts import count
from tests.ray.elastic_cluster import ElasticCluster
from tests.ray.elastic_loops import BATCH_SIZE, MAX_LR, NUM_SAMPLES, ROUND_STEPS
from tests.ray.elastic_runs import ElasticRun
from tests.ray.told_samples import account_of, require_each_sample_once, require_same_sums

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def cluster() -> Iterator[ElasticCluster]:
    with ElasticCluster() as cluster:
        yield cluster


def test_4_to_2_to_3_to_8_is_one_schedule(cluster: ElasticCluster, tmp_path: Path) -> None:
    cluster.add(2)
    leaving = cluster.add(2)
    run = ElasticRun(tmp_path, (1, 8), {"total_steps": 4000})
    run.wait_for_rounds(4)
    cluster.remove(leaving)
    run.wait_for_rounds(2)
    cluster.add(1)
    run.wait_for_rounds(3)
    cluster.add(5)
    run.wait_for_rounds(8)
    run.finish()
    lines = run.lines()
    assert {line["replicas"] for line in lines} >= {4, 2, 3, 8}
    require_planned_values(lines)
    require_continuous_base(lines, 4000)
    require_samples(run, lines)


def test_groups_of_two_lose_a_worker_idle_one_and_grow_again(cluster: ElasticCluster, tmp_path: Path) -> None:
    cluster.add(3)
    leaving = cluster.add(1)
    run = ElasticRun(tmp_path, (1, 4), {"total_steps": 4000}, ranks_per_replica=2)
    run.wait_for_rounds(4)
    cluster.remove(leaving)
    run.wait_for_rounds(2)
    shrunk_at = run.newest_step()
    cluster.add(1)
    run.wait_for_rounds(4, after_step=shrunk_at)
    run.finish()
    lines = run.lines()
    require_planned_values(lines)
    require_continuous_base(lines, 4000)
    for line in lines:  # the loop sees whole replicas only, by Ray's word as by torch's
        assert line["world_size"] == line["torch_world_size"] == 2 * line["replicas"]
    assert {line["replicas"] for line in lines} == {1, 2}
    told = require_samples(run, lines)
    assert {len(ended.by_replica) for ended in told.rounds} == {1, 2}
    for replicas in (1, 2):  # each of two ranks; the round in which an epoch ends may have a short batch
        sizes = Counter(
            own for ended in told.rounds if len(ended.by_replica) == replicas for own in ended.by_replica
        )
        assert sizes.most_common(1)[0][0] == max(sizes) == 2 * BATCH_SIZE * ROUND_STEPS


@pytest.mark.parametrize("controller", ["auto"])
def test_a_search_that_a_resize_interrupts_is_repeated_with_the_new_size(
    cluster: ElasticCluster, tmp_path: Path, controller: str
) -> None:
    cluster.add(2)
    leaving = cluster.add(2)
    run = ElasticRun(tmp_path, (1, 4), {"total_steps": 4000, "controller": controller})
    run.wait_for(lambda lines: any(line["round"] == 1 for line in lines), "the second search round")
    cluster.remove(leaving)
    run.wait_for(lambda lines: any(line["phase"] == "train" for line in lines), "the end of the search")
    run.finish()
    searching = [line for line in run.lines() if line["phase"] in ("scout", "pairs")]
    require_planned_values(run.lines())
    sizes: dict[int, set[int]] = {}
    for line in searching:
        sizes.setdefault(line["round"], set()).add(line["replicas"])
    assert {4, 2} in sizes.values()  # the round that was interrupted was made anew, under its own number
    assert sizes[0] == {4}


def require_samples(run: ElasticRun, lines: list[dict[str, Any]]) -> SamplesAccount:
    """No sample is skipped or counted twice in an epoch, at whatever sizes; the ledger adds up to it."""
    seen = count(lines)
    require_each_sample_once(seen, NUM_SAMPLES, left_out=max(line["num_ranks"] for line in lines) - 1)
    told = account_of(run.out / "stored" / "elastic" / LEDGER_FILE)
    require_same_sums(told, seen)
    return told


def require_planned_values(lines: list[dict[str, Any]]) -> None:
    for line in lines:
        assert line["lr"] == pytest.approx(line["planned"], rel=1e-6), line
        assert line["momentum"] == pytest.approx(line["planned_momentum"], rel=1e-6), line


def require_continuous_base(lines: list[dict[str, Any]], total_steps: int) -> None:
    """The centre of the spread is torch's OneCycleLR at every step, of whatever size the group is."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter])
    reference = torch.optim.lr_scheduler.OneCycleLR(optimizer, MAX_LR, total_steps=total_steps)
    rates = []
    for _ in range(max(line["step"] for line in lines) + 1):
        rates.append(reference.get_last_lr()[0])
        optimizer.step()
        reference.step()
    for line in lines:
        assert line["base"] == pytest.approx(rates[line["step"]], rel=1e-9), line
    assert {line["step"] for line in lines} == set(range(len(rates)))
