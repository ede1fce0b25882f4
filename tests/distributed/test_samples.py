"""Samples on real ranks: the ledger's sums are what each rank counted for itself, also after a resize."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from hdet_ray import Auto, HDETOneCycleLR, LocalControl
from hdet_ray.core.replay import read_ledger
from hdet_ray.data import ElasticSampler
from hdet_ray.optim.rounds import BoundaryEvent
from hdet_ray.view.samples import account
from tests.distributed import loops
from tests.distributed.ranks import run_on_ranks

STEPS, KEPT_ROUNDS = 400, 4
"""The checkpoint is of the boundary after so many rounds, in the middle of the search."""
SEARCHING = Auto(scout_steps=8, pair_steps=16, max_search_ratio=1.0, sync_every=10)


def _train(
    rank: int, ranks_per_replica: int, num_rounds: int, folder: Path, resumed: dict[str, Any] | None
) -> dict[str, Any]:
    """Train some rounds; a rank takes 2 samples more a step than the rank before it."""
    world = torch.distributed.get_world_size()
    mesh = init_device_mesh(
        "cpu", (world // ranks_per_replica, ranks_per_replica), mesh_dim_names=("replica", "group")
    )
    model = loops.wrap(loops.make_net())
    scheduler = HDETOneCycleLR(
        loops.make_optimizer("adamw", model),
        max_lr=0.02,
        total_steps=STEPS,
        controller=SEARCHING,
        model=model,
        mesh=mesh,
        probe=loops.probe_of(model),
        control=LocalControl(ledger=folder / "ledger.jsonl"),
    )
    sampler = ElasticSampler(range(10**6), num_replicas=world, rank=rank)
    scheduler.count_samples(sampler)
    if resumed is not None:
        scheduler.load_state_dict(resumed)
    ended: list[BoundaryEvent] = []
    scheduler.on_boundary(ended.append)
    taken, by_round, kept = 0, [], None
    indices = iter(sampler)
    while len(ended) < num_rounds:
        num = 4 + 2 * rank
        x = torch.tensor(
            [[next(indices) / 1e6] * loops.NUM_FEATURES for _ in range(num)], dtype=torch.float64
        )
        taken += num
        loss = nn.functional.mse_loss(model(x), x.sum(1, keepdim=True).sin())
        scheduler.optimizer.zero_grad()
        loss.backward()
        scheduler.optimizer.step()
        scheduler.step(loss)
        if scheduler.is_boundary:
            by_round.append(taken)
            taken = 0
            if len(ended) == KEPT_ROUNDS:
                kept = scheduler.state_dict()
    return {
        "by_round": by_round,
        "kept": kept,
        "phases": [event.finished.phase for event in ended],
        "totals": [event.report.facts["samples_total"] for event in ended],
    }


def _by_replica(outcomes: list[dict[str, Any]], ranks_per_replica: int) -> list[tuple[int, ...]]:
    """Of each round, what each replica's ranks counted."""
    by_rank = [outcome["by_round"] for outcome in outcomes]
    return [
        tuple(sum(own[i : i + ranks_per_replica]) for i in range(0, len(own), ranks_per_replica))
        for own in zip(*by_rank, strict=True)
    ]


def test_the_ledger_adds_up_to_what_each_rank_counted_across_a_resize_in_the_search(tmp_path: Path) -> None:
    before = run_on_ranks(_train, 4, 2, KEPT_ROUNDS + 2, tmp_path, None, store_path=tmp_path)
    kept = before[0]["kept"]
    after = run_on_ranks(_train, 3, 1, 5, tmp_path, kept, store_path=tmp_path)
    assert set(before[0]["phases"]) <= {"scout", "pairs"}  # rounds whose weights are put back
    first, second = _by_replica(before, 2), _by_replica(after, 1)
    ledger = read_ledger((tmp_path / "ledger.jsonl").read_text().splitlines())
    told = account(ledger.items, ledger.abandoned)
    assert [r.by_replica for r in told.rounds] == [*first[:KEPT_ROUNDS], *second]
    assert [r.by_replica for r in told.abandoned] == first[KEPT_ROUNDS:]
    assert told.total == sum(map(sum, [*first[:KEPT_ROUNDS], *second]))
    assert told.lost_by_attempt == {1: sum(map(sum, first[KEPT_ROUNDS:]))}
    assert after[0]["totals"][-1] == told.total  # a resumed run's total goes on from its checkpoint's
    assert before[0]["totals"][-1] == sum(map(sum, first))
