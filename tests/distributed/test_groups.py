"""Replicas of several ranks: data-parallel inside, different only along the replica dimension."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh

from hdet_ray import Auto, ConfigError, Fixed, HDETOneCycleLR, value_at
from hdet_ray.config import Controller, GradientSync
from tests.distributed import loops
from tests.distributed.ranks import run_on_ranks

STEPS = 200


def _batch_of_replica(step: int, replica: int) -> tuple[torch.Tensor, torch.Tensor]:
    return loops.batch(step, replica, size=16)


def _train(rank: int, ranks_per_replica: int, controller: Controller, steps: int) -> dict[str, Any]:
    world = torch.distributed.get_world_size()
    mesh = init_device_mesh(
        "cpu", (world // ranks_per_replica, ranks_per_replica), mesh_dim_names=("replica", "group")
    )
    model = loops.wrap(loops.make_net())
    optimizer = loops.make_optimizer("adamw", model)
    scheduler = HDETOneCycleLR(
        optimizer,
        max_lr=0.02,
        total_steps=steps,
        controller=controller,
        model=model,
        mesh=mesh,
        probe=loops.probe_of(model),
    )
    replica, part = divmod(rank, ranks_per_replica)
    size = 16 // ranks_per_replica
    rates_agree = True
    for i in range(steps):
        x, y = _batch_of_replica(i, replica)
        x, y = x[part * size : (part + 1) * size], y[part * size : (part + 1) * size]
        loss = torch.nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step(loss)
        plan = scheduler.plan
        rates_agree &= optimizer.param_groups[0]["lr"] == value_at(
            plan, "lr", 0, replica, scheduler.last_epoch
        )
    return {
        "weights": loops.fingerprint(model, optimizer),
        "rates_agree": rates_agree,
        "num_replicas": scheduler.plan.num_replicas,
        "c": scheduler.state.log_scale,
    }


@pytest.mark.parametrize("gradient_sync", ["shared", "local"])
def test_two_replicas_of_two_ranks_equal_two_of_one_rank_with_twice_the_batch(
    tmp_path: Path, gradient_sync: GradientSync
) -> None:
    controller = Fixed(alpha=1 / 9, sync_every=20, gradient_sync=gradient_sync)
    grouped = run_on_ranks(_train, 4, 2, controller, STEPS, store_path=tmp_path)
    single = run_on_ranks(_train, 2, 1, controller, STEPS, store_path=tmp_path)
    for outcome in (*grouped, *single):
        assert outcome["rates_agree"]
        assert outcome["num_replicas"] == 2
    for a, b in zip(grouped[0]["weights"], single[0]["weights"], strict=True):
        assert torch.allclose(a.double(), b.double(), rtol=0, atol=1e-6)


def test_a_search_works_with_replicas_of_two_ranks(tmp_path: Path) -> None:
    controller = Auto(scout_steps=8, pair_steps=16, max_search_ratio=1.0, sync_every=20)
    grouped = run_on_ranks(_train, 4, 2, controller, 120, store_path=tmp_path)
    single = run_on_ranks(_train, 2, 1, controller, 120, store_path=tmp_path)
    assert grouped[0]["c"] == pytest.approx(single[0]["c"], abs=1e-6)
    for a, b in zip(grouped[0]["weights"], single[0]["weights"], strict=True):
        assert torch.allclose(a.double(), b.double(), rtol=0, atol=1e-6)


def _wrong_mesh(rank: int) -> str:
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("data",))
    model = loops.wrap(loops.make_net())
    optimizer = loops.make_optimizer("adamw", model)
    with pytest.raises(ConfigError) as caught:
        HDETOneCycleLR(optimizer, max_lr=0.1, total_steps=100, model=model, mesh=mesh)
    return str(caught.value)


def test_a_mesh_of_other_dimensions_is_refused_with_the_call_that_makes_the_right_one(tmp_path: Path) -> None:
    for message in run_on_ranks(_wrong_mesh, 2, store_path=tmp_path):
        assert "init_device_mesh" in message
