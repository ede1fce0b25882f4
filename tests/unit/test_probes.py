"""A probe measures and leaves no trace."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hdet_ray.exceptions import ConfigError, ProbeError
from hdet_ray.optim.probes import Probe


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.linear = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.dropout = nn.Dropout(0.5)
        self.dropout.eval()  # A flag of its own, which has to survive.

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.norm(self.linear(x)))


def random_states() -> list[object]:
    return [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]


def test_the_result_is_the_mean_over_the_numbered_batches() -> None:
    asked = []

    def fn(k: int) -> Tensor:
        asked.append(k)
        return torch.tensor([[float(k * k)]])

    assert Probe(fn, Net(), seed=0).measure(3, 4) == (9 + 16 + 25 + 36) / 4
    assert asked == [3, 4, 5, 6]


@pytest.mark.parametrize(
    "value", [2, 2.0, np.float32(2), torch.tensor(2.0), torch.tensor([2]), torch.ones(1, 1) * 2]
)
def test_any_single_number_is_a_loss(value: object) -> None:
    assert Probe(lambda k: value, Net(), seed=0).measure(0, 3) == 2.0


@pytest.mark.parametrize("value", [math.nan, math.inf, torch.tensor(math.nan)])
def test_a_nonfinite_loss_is_a_result_and_no_error(value: object) -> None:
    assert not math.isfinite(Probe(lambda k: value if k else 1.0, Net(), seed=0).measure(0, 2))


def test_the_module_is_in_eval_mode_without_gradients_and_gets_its_flags_back() -> None:
    net = Net()
    flags = {name: module.training for name, module in net.named_modules()}
    seen = []

    def fn(k: int) -> Tensor:
        seen.append((torch.is_grad_enabled(), any(module.training for module in net.modules())))
        return net(torch.ones(4, 3)).sum()

    Probe(fn, net, seed=0).measure(0, 2)
    assert seen == [(False, False)] * 2
    assert {name: module.training for name, module in net.named_modules()} == flags
    assert torch.is_grad_enabled()


def draw(k: int) -> float:
    return torch.rand(()).item() + random.random() + float(np.random.rand())


def test_random_states_go_on_as_if_nothing_had_been_drawn() -> None:
    before = random_states()
    Probe(draw, Net(), seed=0).measure(0, 3)
    assert random_states() == before


def test_draws_depend_on_seed_and_number_alone() -> None:
    values = [Probe(draw, Net(), seed=5).measure(2, 1)]
    torch.rand(3), random.random(), np.random.rand(2)
    values.append(Probe(draw, Net(), seed=5).measure(2, 1))
    assert values[0] == values[1]
    assert values[0] != Probe(draw, Net(), seed=5).measure(3, 1)
    assert values[0] != Probe(draw, Net(), seed=6).measure(2, 1)


def test_all_is_put_back_when_the_function_raises() -> None:
    net, before = Net(), random_states()
    flags = [module.training for module in net.modules()]

    def fn(k: int) -> float:
        draw(k)
        raise KeyError("no such batch")

    with pytest.raises(ProbeError, match=r"probe\(0\) raised KeyError: 'no such batch'"):
        Probe(fn, net, seed=0).measure(0, 1)
    assert random_states() == before
    assert [module.training for module in net.modules()] == flags
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("value", [None, "0.5", True, torch.ones(2), torch.tensor(1j), [0.5], torch.ones(0)])
def test_what_is_no_number_is_an_error(value: object) -> None:
    with pytest.raises(ProbeError, match=r"probe\(0\) returned a .*return one number"):
        Probe(lambda k: value, Net(), seed=0).measure(0, 1)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("linear.weight", lambda net: net.linear.weight.add_(1e-6)),
        ("linear.bias", lambda net: net.linear.bias.data.mul_(1.0001)),
        ("norm.running_mean", lambda net: net.norm.train()(torch.ones(4, 3) * 5)),
        ("norm.num_batches_tracked", lambda net: net.norm.num_batches_tracked.data.add_(1)),
        ("linear.weight", lambda net: setattr(net.linear, "weight", nn.Parameter(torch.ones(3, 3)))),
    ],
)
def test_a_probe_that_changes_the_module_is_an_error_that_names_what(name: str, write) -> None:
    net = Net()

    def fn(k: int) -> float:
        write(net)
        return 0.0

    with pytest.raises(ProbeError, match=rf"the probe changed .*{name}"):
        Probe(fn, net, seed=0).measure(0, 1)


def test_a_dead_candidate_with_nan_weights_can_be_measured() -> None:
    net = Net()
    net.linear.weight.data.fill_(math.nan)
    assert math.isnan(Probe(lambda k: net(torch.ones(2, 3)).sum(), net, seed=0).measure(0, 1))


@pytest.mark.parametrize(("first", "count"), [(-1, 2), (0, 0)])
def test_batches_that_cannot_be_asked_for_are_refused(first: int, count: int) -> None:
    with pytest.raises(ConfigError, match=f"first={first}, count={count}"):
        Probe(lambda k: 0.0, Net(), seed=0).measure(first, count)


def test_a_probe_that_is_no_function_is_refused() -> None:
    with pytest.raises(ConfigError, match="can't be called"):
        Probe(0.5, Net(), seed=0)  # type: ignore[arg-type]
