"""Teams that share gradients: bit-equal to DDP as one team, apart as several, switched without rebuilding."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hdet_ray.exceptions import ConfigError
from hdet_ray.optim.gradient_sync import TeamSync
from hdet_ray.optim.probes import Probe
from tests.distributed.ranks import run_on_ranks


class Net(nn.Module):
    """Batch statistics, and a branch that some batches leave unused."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 16)
        self.norm = nn.BatchNorm1d(16)
        self.second = nn.Linear(16, 3)
        self.branch = nn.Linear(16, 3)

    def forward(self, x: Tensor, uses_branch: bool = True) -> Tensor:
        hidden = torch.relu(self.norm(self.first(x)))
        return self.second(hidden) + (self.branch(hidden) if uses_branch else 0)


def wrapped(**options: bool) -> DistributedDataParallel:
    torch.manual_seed(7)
    return DistributedDataParallel(Net(), bucket_cap_mb=0.001, **options)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    return torch.optim.AdamW([{"params": decayed}, {"params": others, "weight_decay": 0.0}], lr=3e-2)


def batches(rank: int, count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(50 + rank)
    return [torch.randn(8, 6, generator=generator) for _ in range(count)]


def train(model: nn.Module, rank: int, steps: int = 12, forward: Callable[..., Tensor] | None = None) -> None:
    optimizer = adamw(model)
    for x in batches(rank, steps):
        optimizer.zero_grad()
        (forward or model)(x).square().mean().backward()
        optimizer.step()


def same_bits(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def agrees_with_others(model: nn.Module, group: dist.ProcessGroup | None = None) -> bool:
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    rows = [torch.empty_like(flat) for _ in range(dist.get_world_size(group))]
    dist.all_gather(rows, flat, group=group)
    return all(torch.equal(row, flat) for row in rows)


def one_team_against_ddp(rank: int) -> dict[str, bool]:
    results = {}
    plain, ours = wrapped(), wrapped()
    TeamSync(ours)
    train(plain, rank)
    train(ours, rank)
    results["untouched"] = same_bits(plain, ours)

    ours = wrapped()
    TeamSync(ours).use(dist.new_group(), dist.get_world_size(), is_whole_world=True)
    train(ours, rank)
    results["a group of all"] = same_bits(plain, ours)

    plain, ours = wrapped(), wrapped()
    TeamSync(ours)
    for model in (plain, ours):
        optimizer = adamw(model)
        for i, x in enumerate(batches(rank, 8)):
            if i % 2 == 0:
                with model.no_sync():
                    model(x).square().mean().backward()
            else:
                model(x).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
    results["accumulation"] = same_bits(plain, ours)

    plain, ours = wrapped(find_unused_parameters=True), wrapped(find_unused_parameters=True)
    TeamSync(ours)
    for model in (plain, ours):
        optimizer = adamw(model)
        for i, x in enumerate(batches(rank, 6)):
            optimizer.zero_grad()
            model(x, uses_branch=i % 2 == 0).square().mean().backward()
            optimizer.step()
    results["unused parameters"] = same_bits(plain, ours)

    plain, ours = (DistributedDataParallel(Net().to(torch.bfloat16)) for _ in range(2))
    ours.load_state_dict(plain.state_dict())
    TeamSync(ours)
    for model in (plain, ours):
        train(model, rank, forward=lambda x, model=model: model(x.to(torch.bfloat16)).float())
    results["bfloat16"] = same_bits(plain, ours)
    return results


@pytest.mark.parametrize("num_ranks", [3, 4])
def test_one_team_of_all_is_bit_equal_to_ddp(tmp_path: Path, num_ranks: int) -> None:
    for results in run_on_ranks(one_team_against_ddp, num_ranks, store_path=tmp_path):
        assert results == dict.fromkeys(results, True)


def switch_teams(rank: int) -> dict[str, bool]:
    halves = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    own_half = halves[rank // 2]
    model = wrapped()
    sync = TeamSync(model)
    results = {"together": agrees_with_others(model)}

    sync.use(own_half, 2, is_whole_world=False)
    reference = replicated_training(model.module, [2 * (rank // 2), 2 * (rank // 2) + 1], rank)
    train(model, rank)
    results["halves agree inside"] = agrees_with_others(model, own_half)
    results["halves differ"] = not agrees_with_others(model)
    results["halves are right"] = all(
        torch.allclose(a, b, rtol=1e-4, atol=1e-6)
        for a, b in zip(model.module.parameters(), reference.parameters(), strict=True)
    )

    sync.use(None, 1, is_whole_world=False)
    alone = Net()
    alone.load_state_dict(model.module.state_dict())
    train(alone, rank)
    train(model, rank)
    results["alone is alone"] = same_bits(alone, model.module)

    with torch.no_grad():
        for tensor in model.module.state_dict().values():
            dist.broadcast(tensor, 0)
    sync.use(None, dist.get_world_size(), is_whole_world=True)
    return results


def replicated_training(module: nn.Module, ranks: list[int], own_rank: int) -> nn.Module:
    """The definition: the mean of the members' gradients, in one process, with this rank's statistics."""
    copies = {rank: Net() for rank in ranks}
    optimizers = {rank: adamw(copies[rank]) for rank in ranks}
    for copy in copies.values():
        copy.load_state_dict(module.state_dict())
    for step in range(12):
        for rank, copy in copies.items():
            copy.zero_grad()
            copy(batches(rank, 12)[step]).square().mean().backward()
        for parameters in zip(*(copy.parameters() for copy in copies.values()), strict=True):
            mean = torch.stack([p.grad for p in parameters]).mean(0)
            for parameter in parameters:
                parameter.grad = mean.clone()
        for optimizer in optimizers.values():
            optimizer.step()
    return copies[own_rank]


def test_teams_train_apart_and_share_gradients_inside(tmp_path: Path) -> None:
    for results in run_on_ranks(switch_teams, 4, store_path=tmp_path):
        assert results == dict.fromkeys(results, True)


def go_apart_and_come_back(rank: int) -> bool:
    """Apart for a while, put back, then together: as if it had not been."""
    plain, ours = wrapped(), wrapped()
    sync = TeamSync(ours)
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    sync.use(None, 1, is_whole_world=False)
    for model in (plain, ours):  # Both, because DDP orders its buckets anew after the first step.
        train(model, rank, steps=5)
        model.load_state_dict(before)
    sync.use(dist.group.WORLD, dist.get_world_size(), is_whole_world=True)
    train(plain, rank)
    train(ours, rank)
    return same_bits(plain, ours)


def test_a_team_of_all_after_a_search_is_bit_equal_to_ddp_again(tmp_path: Path) -> None:
    assert run_on_ranks(go_apart_and_come_back, 3, store_path=tmp_path) == [True] * 3


def batch_statistics(rank: int) -> list[float]:
    means = []
    for syncs_buffers in (True, False):
        model = wrapped(forward_sync_buffers=syncs_buffers)
        model.module.norm.momentum = 0.0  # Only a broadcast changes the statistics.
        sync = TeamSync(model)
        for team, is_whole_world in ((None, False), (dist.group.WORLD, True)):
            sync.use(team, dist.get_world_size() if team else 1, is_whole_world=is_whole_world)
            model.module.norm.running_mean.fill_(rank + 1.0)
            model(batches(rank, 1)[0]).sum().backward()
            means.append(model.module.norm.running_mean[0].item())
    return means


def test_buffers_are_broadcast_only_to_a_team_of_all_and_only_if_the_user_had_it_so(tmp_path: Path) -> None:
    assert run_on_ranks(batch_statistics, 2, store_path=tmp_path) == [
        [1.0, 1.0, 1.0, 1.0],
        [2.0, 1.0, 2.0, 2.0],
    ]


def bring_nonfinite(rank: int) -> list[int | None]:
    model = wrapped()
    sync = TeamSync(model)
    seen = []
    for value in (1.0, math.nan, 1.0, math.inf, 1.0):
        x = torch.ones(8, 6) * torch.arange(8.0).unsqueeze(1)
        if rank == 1:
            x[3, 2] = value
        model(x).square().mean().backward()
        seen.append(sync.first_nonfinite())
        with torch.no_grad():
            model.zero_grad()
            model.module.norm.reset_running_stats()
    return seen


def test_the_rank_that_brought_a_nonfinite_gradient_is_known(tmp_path: Path) -> None:
    good, bad = run_on_ranks(bring_nonfinite, 2, store_path=tmp_path)
    assert good == [None] * 5
    assert bad == [None, 0, None, 0, None]


def refusals(rank: int) -> dict[str, str]:
    hooked = wrapped()
    hooked.register_comm_hook(None, silent_hook)
    built_in = wrapped()
    built_in._register_builtin_comm_hook(dist.BuiltinCommHookType.ALLREDUCE)
    twice = wrapped()
    TeamSync(twice)
    wrapper = nn.Module()
    wrapper.module = wrapped()
    models = {
        "bare": Net(),
        "hooked": hooked,
        "built in": built_in,
        "twice": twice,
        "wrapped again": wrapper,
    }
    texts = {}
    for name, model in models.items():
        try:
            TeamSync(model)
        except ConfigError as error:
            texts[name] = str(error)
    return texts


def silent_hook(state: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    raise RuntimeError("never called")


silent_hook.__annotations__ = {}  # DDP wants the types themselves, or none.


def test_a_model_that_cannot_be_split_into_teams_is_refused_with_a_remedy(tmp_path: Path) -> None:
    (texts,) = run_on_ranks(refusals, 1, store_path=tmp_path)
    assert "model is a Net" in texts["bare"]
    assert "DistributedDataParallel(model)" in texts["bare"]
    assert "already has the communication hook 'silent_hook'" in texts["hooked"]
    assert "communication hook of torch's own" in texts["built in"]
    assert "already belongs to another scheduler" in texts["twice"]
    assert "pass the DistributedDataParallel module that it wraps" in texts["wrapped again"]


def compiled_against_eager(rank: int) -> bool:
    eager, inner = (DistributedDataParallel(Net()) for _ in range(2))
    inner.load_state_dict(eager.state_dict())
    compiled = torch.compile(inner, backend="eager")
    sync = TeamSync(compiled)
    TeamSync(eager).use(None, 1, is_whole_world=False)
    sync.use(None, 1, is_whole_world=False)
    train(eager, rank, steps=3)
    train(compiled, rank, steps=3)
    return torch.allclose(eager.module.first.weight, inner.module.first.weight, rtol=1e-5, atol=1e-6)


def test_a_compiled_model_switches_teams_too(tmp_path: Path) -> None:
    assert run_on_ranks(compiled_against_eager, 2, store_path=tmp_path) == [True] * 2


def probe_between_steps(rank: int) -> tuple[bool, float]:
    plain, ours = wrapped(), wrapped()
    TeamSync(ours)
    probe = Probe(lambda k: ours(batches(rank, 1)[0]).square().mean(), ours, seed=0)
    losses = []
    for model in (plain, ours):
        optimizer = adamw(model)
        for x in batches(rank, 4):
            if model is ours and rank == 0:  # On one rank alone: a probe that talked would hang.
                losses.append(probe.measure(0, 2))
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    return same_bits(plain, ours), sum(losses)


def test_a_probe_through_ddp_sends_nothing_and_leaves_training_bit_equal(tmp_path: Path) -> None:
    results = run_on_ranks(probe_between_steps, 2, store_path=tmp_path)
    assert [is_equal for is_equal, _ in results] == [True, True]
    assert results[0][1] > 0
