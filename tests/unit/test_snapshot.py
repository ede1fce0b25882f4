"""Put-back: after a detour, training goes on as if it had not been made."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hdet_ray.exceptions import CheckpointError, ConfigError
from hdet_ray.optim.snapshot import Snapshot, optimizer_tensors

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]

OPTIMIZERS: dict[str, OptimizerFactory] = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=1e-2, amsgrad=True, foreach=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
    "plain sgd": lambda p: torch.optim.SGD(p, lr=1e-2),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=1e-2, max_iter=3, history_size=2),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
}


def make(name: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
    return model, OPTIMIZERS[name](model.parameters())


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(16, 4, generator=generator)

        def loss(x: Tensor = x) -> Tensor:
            optimizer.zero_grad()
            value = model(x).square().mean()
            value.backward()
            return value

        optimizer.step(loss)


def snapshot_of(model: nn.Module, optimizer: torch.optim.Optimizer, scaler: Any = None) -> Snapshot:
    return Snapshot([*model.parameters(), *model.buffers()], optimizer, scaler)


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return copy.deepcopy({"model": dict(model.state_dict()), "optimizer": optimizer.state_dict()["state"]})


def is_equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(is_equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(is_equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("steps_before", [0, 1, 5])
def test_a_detour_leaves_no_trace(name: str, steps_before: int) -> None:
    model, optimizer = make(name)
    train(model, optimizer, steps_before, seed=1)
    snapshot = snapshot_of(model, optimizer)
    snapshot.take()
    before = state_of(model, optimizer)

    train(model, optimizer, 4, seed=2)
    assert not is_equal(before, state_of(model, optimizer))
    snapshot.restore()
    assert is_equal(before, state_of(model, optimizer))

    straight_model, straight_optimizer = make(name)
    train(straight_model, straight_optimizer, steps_before, seed=1)
    for each in ((model, optimizer), (straight_model, straight_optimizer)):
        train(*each, 4, seed=9)
    assert is_equal(state_of(model, optimizer), state_of(straight_model, straight_optimizer))


def test_one_snapshot_is_restored_as_often_as_needed() -> None:
    model, optimizer = make("lbfgs")
    train(model, optimizer, 3, seed=1)
    snapshot = snapshot_of(model, optimizer)
    snapshot.take()
    before = state_of(model, optimizer)
    for seed in range(3):
        train(model, optimizer, 2, seed=seed)
        snapshot.restore()
        assert is_equal(before, state_of(model, optimizer))


def test_tensors_are_overwritten_where_they_are() -> None:
    model, optimizer = make("adamw")
    train(model, optimizer, 2, seed=1)
    addresses = {id(t): t.data_ptr() for state in optimizer.state.values() for t in state.values()}
    addresses |= {id(p): p.data_ptr() for p in (*model.parameters(), *model.buffers())}
    snapshot = snapshot_of(model, optimizer)
    snapshot.take()
    train(model, optimizer, 2, seed=2)
    snapshot.restore()
    now = [*(t for state in optimizer.state.values() for t in state.values())]
    assert {id(t): t.data_ptr() for t in (*now, *model.parameters(), *model.buffers())} == addresses


def test_entries_that_came_later_are_removed() -> None:
    model, optimizer = make("adamw")
    snapshot = snapshot_of(model, optimizer)
    snapshot.take()
    train(model, optimizer, 1, seed=1)
    snapshot.restore()
    assert len(optimizer.state) == 0


def test_entries_that_have_gone_are_made_anew() -> None:
    model, optimizer = make("adamw")
    train(model, optimizer, 2, seed=1)
    snapshot = snapshot_of(model, optimizer)
    snapshot.take()
    before = state_of(model, optimizer)
    optimizer.state.clear()
    snapshot.restore()
    assert is_equal(before, state_of(model, optimizer))


def test_hyperparameters_of_the_groups_are_not_put_back() -> None:
    model, optimizer = make("adamw")
    snapshot = snapshot_of(model, optimizer)
    snapshot.take()
    optimizer.param_groups[0]["lr"] = 0.5
    snapshot.restore()
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_the_random_state_goes_on() -> None:
    model, optimizer = make("adamw")
    snapshot = snapshot_of(model, optimizer)
    torch.manual_seed(1)
    expected = torch.rand(2)[1]
    torch.manual_seed(1)
    snapshot.take()
    torch.rand(1)
    snapshot.restore()
    assert torch.rand(1)[0] == expected


def test_the_grad_scaler_is_put_back() -> None:
    model, optimizer = make("sgd")
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2)
    snapshot = snapshot_of(model, optimizer, scaler)

    def scaled_steps(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            scaler.scale(model(torch.ones(4, 4)).square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()

    scaled_steps(3)
    snapshot.take()
    before = scaler.state_dict()
    scaled_steps(4)
    assert scaler.state_dict() != before
    snapshot.restore()
    assert scaler.state_dict() == before


def test_taking_again_uses_the_same_memory() -> None:
    model, optimizer = make("adamw")
    train(model, optimizer, 1, seed=1)
    snapshot = snapshot_of(model, optimizer)
    snapshot.take()
    first = [tensor.data_ptr() for tensor in snapshot.state_dict()["tensors"]]
    first += [t.data_ptr() for state in snapshot.state_dict()["state"].values() for t in state.values()]
    train(model, optimizer, 1, seed=2)
    snapshot.take()
    again = [tensor.data_ptr() for tensor in snapshot.state_dict()["tensors"]]
    again += [t.data_ptr() for state in snapshot.state_dict()["state"].values() for t in state.values()]
    assert again == first


def test_the_extra_memory_is_one_copy_and_is_told() -> None:
    model, optimizer = make("adamw")
    train(model, optimizer, 1, seed=1)
    snapshot = snapshot_of(model, optimizer)
    assert snapshot.extra_bytes() == 0
    snapshot.take()
    weights = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    moments = 2 * sum(p.nbytes for p in model.parameters()) + 4 * len(list(model.parameters()))
    assert snapshot.extra_bytes() == weights + moments


def test_weights_alone_can_be_put_back() -> None:
    model, optimizer = make("adamw")
    train(model, optimizer, 2, seed=1)
    snapshot = snapshot_of(model, optimizer)
    snapshot.take()
    before = state_of(model, optimizer)
    train(model, optimizer, 2, seed=2)
    later = state_of(model, optimizer)
    snapshot.restore_weights()
    assert is_equal(state_of(model, optimizer), {"model": before["model"], "optimizer": later["optimizer"]})


def test_a_snapshot_travels_through_a_file(tmp_path: Any) -> None:
    model, optimizer = make("adamw")
    train(model, optimizer, 2, seed=1)
    snapshot = snapshot_of(model, optimizer)
    snapshot.take()
    before = state_of(model, optimizer)
    train(model, optimizer, 2, seed=2)
    torch.save(snapshot.state_dict(), tmp_path / "snapshot.pt")

    other_model, other_optimizer = make("adamw")
    train(other_model, other_optimizer, 5, seed=3)
    other = snapshot_of(other_model, other_optimizer)
    other.load_state_dict(torch.load(tmp_path / "snapshot.pt", weights_only=True))
    other.restore()
    assert is_equal(state_of(other_model, other_optimizer), before)


def test_a_snapshot_of_another_model_is_refused() -> None:
    model, optimizer = make("adamw")
    snapshot = snapshot_of(model, optimizer)
    snapshot.take()
    other = nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match="other number or shapes"):
        snapshot_of(other, torch.optim.SGD(other.parameters())).load_state_dict(snapshot.state_dict())


def test_restoring_before_taking_is_an_error() -> None:
    with pytest.raises(ConfigError, match="take\\(\\) first"):
        snapshot_of(*make("sgd")).restore()


def test_step_counts_are_told_from_what_is_averaged() -> None:
    model, optimizer = make("adamw")
    train(model, optimizer, 1, seed=1)
    averaged, counted = optimizer_tensors(optimizer)
    states = [optimizer.state[p] for p in model.parameters()]
    assert [id(t) for t in averaged] == [id(s[name]) for s in states for name in ("exp_avg", "exp_avg_sq")]
    assert [id(t) for t in counted] == [id(s["step"]) for s in states]


def test_the_order_of_state_tensors_is_that_of_the_groups_whatever_was_updated_first() -> None:
    first, second = (nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [first]}, {"params": [second]}], lr=0.1, momentum=0.9)
    second.sum().backward()
    optimizer.step()
    first.sum().backward()
    optimizer.step()
    averaged, counted = optimizer_tensors(optimizer)
    buffers = [optimizer.state[p]["momentum_buffer"] for p in (first, second)]
    assert [id(t) for t in averaged] == [id(t) for t in buffers]
    assert counted == []


def test_asking_for_state_tensors_creates_none() -> None:
    _, optimizer = make("adamw")
    assert optimizer_tensors(optimizer) == ([], [])
    assert len(optimizer.state) == 0
