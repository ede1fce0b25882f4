"""No more than two extra copies of the parameters at any time, counted in the bytes of live tensors.

One copy is the boundary's, for put-back and rollback. The other is lent while `averaged` is open, or is what
an average needs on its way. The optimizer's state is remembered in host memory and counted apart.
"""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from hdet_ray import Fixed, HDETOneCycleLR
from hdet_ray.optim.averaging import Averager
from tests.distributed.ranks import run_on_ranks

SIDE = 3600
"""So large that what an average holds of two half buckets, 12.5 MiB on two ranks, is little beside a copy."""
LAYERS = 4


def make_net(side: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(side, side) for _ in range(LAYERS)))


def bytes_of(tensors: Any) -> int:
    """Bytes of the tensors in nested containers, shared memory counted once."""
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for t in tree_flatten(tensors)[0]
        if isinstance(t, Tensor)
    }
    return sum(storages.values())


def live_bytes() -> int:
    """Bytes of all tensors of this process."""
    gc.collect()
    return bytes_of([x for x in gc.get_objects() if issubclass(type(x), Tensor)])


def _forget_what_is_there() -> None:
    """Let the collector look at what is made from now on alone: a process's imports are a million objects."""
    gc.collect()
    gc.freeze()


class Peak(TorchDispatchMode):
    """The most bytes that tensors made inside held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.peak_bytes = 0
        self._made: list[weakref.ref[Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {id(x) for x in tree_flatten((args, kwargs))[0]}
        result = func(*args, **(kwargs or {}))
        known = {
            t.untyped_storage().data_ptr() for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)
        }
        for out in tree_flatten(result)[0]:
            is_new = isinstance(out, Tensor) and id(out) not in before
            if is_new and out.untyped_storage().data_ptr() not in known:
                self._made.append(weakref.ref(out))
        self._made = [made for made in self._made if made() is not None]
        self.peak_bytes = max(self.peak_bytes, bytes_of([made() for made in self._made]))
        return result


class Run:
    """A net of one size, and how much memory goes beyond what plain training has."""

    def __init__(self, net: nn.Module, optimizer: torch.optim.Optimizer, **settings: Any) -> None:
        self.model = net
        self.optimizer = optimizer
        self._before = live_bytes() - bytes_of(list(net.parameters()))
        self.scheduler = HDETOneCycleLR(optimizer, max_lr=1e-3, cycle_momentum=False, model=net, **settings)
        self.copy_bytes = bytes_of(list(net.parameters()))

    def update(self) -> Tensor:
        side = next(self.model.parameters()).shape[1]
        loss = self.model(torch.ones(1, side)).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def extra_bytes(self) -> int:
        """Live bytes beside parameters, gradients, the optimizer's state and its copy on the host."""
        parameters = list(self.model.parameters())
        state = bytes_of(list(self.optimizer.state.values()))
        gradients = bytes_of([p.grad for p in parameters])
        snapshot = self.scheduler._rounds.weights._snapshot
        remembered = max(snapshot.extra_bytes() - self.copy_bytes, 0)
        return live_bytes() - self._before - self.copy_bytes - gradients - state - remembered


def _measure_alone(rank: int) -> dict[str, list[float]]:
    """Extra memory of a run of one replica, in copies of the parameters."""
    _forget_what_is_there()
    net = make_net(300)
    controller = Fixed(alpha=0.0, sync_every=2)
    run = Run(net, torch.optim.SGD(net.parameters()), total_steps=8, controller=controller)
    measured: dict[str, list[float]] = {"before": [run.extra_bytes()], "training": [], "averaged": []}
    for _ in range(7):
        run.scheduler.step(run.update())
        measured["training"].append(run.extra_bytes())
        with run.scheduler.averaged():
            measured["averaged"].append(run.extra_bytes())
    run.scheduler.step(run.update())
    measured["after"] = [run.extra_bytes()]
    return {name: [value / run.copy_bytes for value in values] for name, values in measured.items()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    # In a process of its own, where no other test's tensors are counted.
    return run_on_ranks(_measure_alone, 1, store_path=tmp_path_factory.mktemp("alone"))[0]


def test_training_holds_one_copy_and_averaged_two(alone: dict[str, list[float]]) -> None:
    assert alone["before"] == pytest.approx([0.0], abs=0.1)
    assert alone["training"] == pytest.approx([1.0] * 7, abs=0.1)
    assert alone["averaged"] == pytest.approx([2.0] * 7, abs=0.1)


def test_after_the_last_step_no_copy_is_held(alone: dict[str, list[float]]) -> None:
    assert alone["after"] == pytest.approx([0.0], abs=0.1)


def _averager_of(run: Run) -> tuple[weakref.ref[Averager], int]:
    """What averages, not kept alive by us, and the bytes that it holds between rounds."""
    averager = run.scheduler._rounds.weights._averager
    assert averager is not None
    return weakref.ref(averager), bytes_of(
        [*averager._staging._stretches.values(), *averager._received._stretches.values()]
    )


def _peaks(rank: int, averages_moments: bool, is_spoiled: bool) -> dict[str, float]:
    """The largest extra memory of local rounds, in copies of the parameters."""
    model = DistributedDataParallel(make_net(SIDE), gradient_as_bucket_view=True)  # no copy of DDP's own
    optimizer = torch.optim.AdamW(model.parameters())
    controller = Fixed(alpha=1 / 9, sync_every=2, gradient_sync="local")
    run = Run(
        model, optimizer, total_steps=6, controller=controller, average_optimizer_state=averages_moments
    )
    peaks: dict[str, float] = {}
    for _ in range(3):  # one round, after which the host's copies are there, and a step
        run.scheduler.step(run.update())
    held = run.extra_bytes()
    kept, kept_bytes = _averager_of(run)
    with Peak() as averaged, run.scheduler.averaged():
        inside = run.extra_bytes()
    given_up_bytes = kept_bytes if kept() is None else 0
    loss = run.update()
    if is_spoiled and rank == 1:
        next(model.parameters()).data.fill_(float("nan"))
    with Peak() as boundary:
        run.scheduler.step(loss)
    peaks["training"] = held / run.copy_bytes
    peaks["averaged"] = max(inside, held - given_up_bytes + averaged.peak_bytes) / run.copy_bytes
    peaks["boundary"] = (held + boundary.peak_bytes) / run.copy_bytes
    peaks["after"] = run.extra_bytes() / run.copy_bytes
    peaks["left by the run before"] = run._before / run.copy_bytes
    return peaks


def _measure_all(rank: int) -> dict[str, dict[str, float]]:
    _forget_what_is_there()
    return {
        "shared moments": _peaks(rank, True, False),
        "own moments": _peaks(rank, False, False),
        "own moments lent": _peaks(rank, False, True),
    }


@pytest.fixture(scope="module")
def peaks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, float]]]:
    return run_on_ranks(_measure_all, 2, store_path=tmp_path_factory.mktemp("peaks"))


@pytest.mark.parametrize("name", ["shared moments", "own moments", "own moments lent"])
def test_no_boundary_and_no_look_at_the_mean_takes_more_than_two_copies(
    peaks: list[dict[str, dict[str, float]]], name: str
) -> None:
    for measured in peaks:
        found = measured[name]
        assert 0.9 < found["training"] < 1.1
        assert found["averaged"] < 2.1
        assert found["boundary"] < 2.1
        assert found["after"] < 1.1


def test_a_run_that_nobody_holds_any_more_is_freed(peaks: list[dict[str, dict[str, float]]]) -> None:
    for measured in peaks:
        assert [found["left by the run before"] for found in measured.values()] == pytest.approx(
            [0.0] * 3, abs=0.01
        )
