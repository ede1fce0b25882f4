"""The fault injector: drawn alike everywhere, each fault once, written down before it happens."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hdet_ray.exceptions import ConfigError
from hdet_ray.optim.scheduler import HDETOneCycleLR
from hdet_ray.testing import (
    AddNode,
    DriverFaults,
    Fault,
    FaultInjector,
    FillDisk,
    FlipBit,
    Kill,
    Own,
    RemoveNode,
    SetNan,
    SlowDown,
    Stop,
    draw_faults,
    faults_from_json,
    faults_to_json,
    newest_progress,
    read_happened,
)

TOTAL_STEPS = 20
ALL_ACTS = [
    Kill(),
    Stop(),
    SlowDown(pause_s=0.1, for_steps=3),
    SetNan(into="parameter"),
    FlipBit(parameter="0.weight", element=2, bit=31),
    FillDisk(where="staging"),
    RemoveNode(is_graceful=True),
    AddNode(num_cpus=2),
    Own(name="mine"),
]


def build() -> tuple[nn.Module, HDETOneCycleLR]:
    """A model and its schedule, alone."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = torch.optim.SGD(model.parameters())
        return model, HDETOneCycleLR(optimizer, 0.1, total_steps=TOTAL_STEPS, controller="fixed", model=model)


def train(
    model: nn.Module, scheduler: HDETOneCycleLR, injector: FaultInjector, num_steps: int
) -> list[float]:
    """The losses of so many steps."""
    losses = []
    for _ in range(num_steps):
        injector.before_step(scheduler)
        scheduler.optimizer.zero_grad()
        loss = model(torch.ones(4, 3)).square().mean()
        loss.backward()
        losses.append(loss.item())
        scheduler.optimizer.step()
        scheduler.step(loss)
    return losses


# ------------------------------------------------------------------ drawing


@given(seed=st.integers(0, 2**40), kills=st.integers(0, 12), nans=st.integers(0, 12))
def test_as_many_are_drawn_as_asked_each_at_a_step_of_its_own(seed: int, kills: int, nans: int) -> None:
    faults = draw_faults(seed, {Kill(): kills, SetNan(): nans}, steps=range(5, 90), num_ranks=3)
    assert Counter(fault.act for fault in faults) == +Counter({Kill(): kills, SetNan(): nans})
    steps = [fault.at_step for fault in faults]
    assert steps == sorted(set(steps))
    assert all(step in range(5, 90) for step in steps)
    assert {fault.rank for fault in faults} <= {0, 1, 2}


def test_a_seed_draws_the_same_on_every_machine() -> None:
    faults = draw_faults(8, {Kill(): 2, Stop(): 1}, steps=range(100), num_ranks=4)
    assert [(f.act.kind, f.rank, f.at_step) for f in faults] == [
        ("kill", 2, 2),
        ("stop", 2, 55),
        ("kill", 3, 86),
    ]
    assert draw_faults(9, {Kill(): 2, Stop(): 1}, steps=range(100), num_ranks=4) != faults


@pytest.mark.parametrize("act", ALL_ACTS)
def test_a_fault_survives_json(act: Any) -> None:
    faults = (Fault(act=act, rank=1, at_step=3), Fault(act=act, at_round=2))
    assert faults_from_json(json.loads(json.dumps(faults_to_json(faults)))) == faults


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Fault(act=Kill()), "at_step=None and at_round=None: give exactly one"),
        (lambda: Fault(act=Kill(), at_step=1, at_round=1), "exactly one"),
        (lambda: Fault(act=Kill(), at_step=-1), "at_step=-1 must be a whole number of at least 0"),
        (lambda: Fault(act=Kill(), at_step=1, rank=-1), "rank=-1"),
        (lambda: Fault(act="kill", at_step=1), "act='kill' is no fault; use one of Kill"),  # type: ignore[arg-type]
        (lambda: SlowDown(pause_s=0.0), r"pause_s=0\.0 must be a finite number of seconds above 0"),
        (lambda: SlowDown(pause_s=1.0, for_steps=0), "for_steps=0"),
        (lambda: SetNan(into="loss"), "into='loss' is unknown; use 'gradient' or 'parameter'"),  # type: ignore[arg-type]
        (lambda: FlipBit(bit=64), "bit=64"),
        (lambda: FillDisk(where="tape"), "where='tape'"),  # type: ignore[arg-type]
        (lambda: AddNode(num_cpus=0), "num_cpus=0"),
        (lambda: Own(name=""), "name=''"),
        (lambda: draw_faults(0, {Kill(): 5}, steps=range(4)), "no step of its own for each of 5"),
        (lambda: draw_faults(0, {Kill(): -1}, steps=range(4)), r"counts\[Kill\(\)\]=-1"),
        (lambda: draw_faults(0, {Kill(): 1}, steps=range(4), num_ranks=0), "num_ranks=0"),
        (lambda: faults_from_json([{"kind": "crash", "at_step": 1}]), "kind='crash' is unknown; use one of"),
        (lambda: faults_from_json([{"kind": "kill", "at_step": 1, "pause_s": 1}]), "it has nothing"),
    ],
)
def test_what_can_not_be_is_refused_with_a_remedy(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


# ------------------------------------------------------------------ the worker's side


def test_a_fault_happens_once_however_often_the_group_starts_again(tmp_path: Path) -> None:
    faults = [Fault(act=SetNan(into="parameter"), at_step=2)]
    model, scheduler = build()
    losses = train(model, scheduler, FaultInjector(faults, tmp_path), 4)
    assert [loss == loss for loss in losses] == [True, True, False, False]
    model, scheduler = build()
    assert all(loss == loss for loss in train(model, scheduler, FaultInjector(faults, tmp_path), 4))
    assert [(each.number, each.step, each.rank) for each in read_happened(tmp_path)] == [(0, 2, 0)]


def test_of_two_processes_only_one_does_it(tmp_path: Path) -> None:
    faults = [Fault(act=SetNan(into="parameter"), at_step=0)]
    first, second = FaultInjector(faults, tmp_path), FaultInjector(faults, tmp_path)  # both saw it open
    assert train(*build(), first, 1)[0] != train(*build(), second, 1)[0]
    assert len(read_happened(tmp_path)) == 1


def test_a_rank_that_is_gone_by_then_hands_its_faults_on(tmp_path: Path) -> None:
    faults = [Fault(act=SlowDown(pause_s=1e-3), rank=5, at_step=1)]
    train(*build(), FaultInjector(faults, tmp_path), 2)
    assert [(each.rank, each.num_ranks) for each in read_happened(tmp_path)] == [(0, 1)]


def test_a_round_counts_as_well_as_a_step(tmp_path: Path) -> None:
    model, scheduler = build()  # one round
    train(model, scheduler, FaultInjector([Fault(act=SlowDown(pause_s=1e-3), at_round=0)], tmp_path), 1)
    assert [(each.step, each.round) for each in read_happened(tmp_path)] == [(0, 0)]


def test_a_slow_worker_is_slow_for_as_long_as_it_was_told(tmp_path: Path) -> None:
    slow = Fault(act=SlowDown(pause_s=0.05, for_steps=3), at_step=2)
    model, scheduler = build()
    injector, times = FaultInjector([slow], tmp_path), []
    for _ in range(7):
        began_s = time.monotonic()
        injector.before_step(scheduler)
        times.append(time.monotonic() - began_s)
        train(model, scheduler, FaultInjector([], tmp_path / "none"), 1)
    assert [pause >= 0.05 for pause in times] == [False, False, True, True, True, False, False]


def test_a_nan_gradient_is_this_ranks_own_for_one_step(tmp_path: Path) -> None:
    model, scheduler = build()
    injector = FaultInjector([Fault(act=SetNan(), at_step=1)], tmp_path)
    seen = []
    for _ in range(3):
        injector.before_step(scheduler)
        model.zero_grad()
        loss = model(torch.ones(4, 3)).square().mean()
        loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        seen.append([bool(gradient.isfinite().all()) for gradient in gradients])
        scheduler.step(loss)
    assert seen == [[True] * 4, [False, True, True, True], [True] * 4]


@pytest.mark.parametrize("bit", [0, 22, 30, 31])
def test_a_flipped_bit_is_one_bit(tmp_path: Path, bit: int) -> None:
    model, scheduler = build()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    flip = FlipBit(parameter="1.weight", element=1, bit=bit)
    FaultInjector([Fault(act=flip, at_step=0)], tmp_path).before_step(scheduler)
    for name, parameter in model.named_parameters():
        changed = parameter.detach().view(torch.int32) ^ before[name].view(torch.int32)
        bits = [number & 0xFFFFFFFF for number in changed.flatten().tolist()]
        assert bits == ([0, 1 << bit] if name == "1.weight" else [0] * len(bits))


def test_a_bit_that_is_not_there_is_refused(tmp_path: Path) -> None:
    _, scheduler = build()
    for number, flip in enumerate(
        [FlipBit(parameter="2.weight"), FlipBit(element=6), FlipBit(parameter="0.bias", bit=32)]
    ):
        injector = FaultInjector([Fault(act=flip, at_step=0)], tmp_path / str(number))
        with pytest.raises(ConfigError, match=r"0\.weight|0\.bias"):
            injector.before_step(scheduler)


@pytest.mark.parametrize(("act", "ended_by"), [(Kill(), signal.SIGKILL), (Stop(), signal.SIGSTOP)])
def test_a_worker_ends_or_stops_itself_after_it_was_written_down(
    tmp_path: Path, act: Kill | Stop, ended_by: signal.Signals
) -> None:
    code = (
        "import sys; from tests.unit.test_testing import *\n"
        "fault = faults_from_json(json.loads(sys.argv[2]))\n"
        "train(*build(), FaultInjector(fault, sys.argv[1]), 3); print('went on')"
    )
    fault = json.dumps(faults_to_json([Fault(act=act, at_step=1)]))
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), fault], stdout=subprocess.PIPE)
    try:
        if ended_by is signal.SIGSTOP:
            _, status = os.waitpid(process.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status)
        else:
            assert process.wait(60) == -ended_by
        (happened,) = read_happened(tmp_path)
        assert (happened.step, happened.pid) == (1, process.pid)
    finally:
        process.kill()
        process.communicate()


def test_a_full_disk_leaves_half_a_checkpoint_without_a_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    import pyarrow.fs

    from hdet_ray.train import reports
    from hdet_ray.train.manifest import MANIFEST_FILE
    from hdet_ray.train.storage import upload

    monkeypatch.setattr(reports, "upload", upload)
    source = tmp_path / "staged"
    source.mkdir()
    for name in ("model.safetensors", MANIFEST_FILE):
        (source / name).write_bytes(b"0123456789")
    _, scheduler = build()
    FaultInjector([Fault(act=FillDisk(), at_step=0)], tmp_path / "faults").before_step(scheduler)
    with pytest.raises(OSError, match="No space left on device") as raised:
        reports.upload(source, pyarrow.fs.LocalFileSystem(), str(tmp_path / "stored"))
    assert raised.value.errno == errno.ENOSPC
    assert [(p.name, p.read_bytes()) for p in (tmp_path / "stored").iterdir()] == [
        ("model.safetensors", b"01234")
    ]
    reports.upload(source, pyarrow.fs.LocalFileSystem(), str(tmp_path / "stored"))  # there is room again
    assert (tmp_path / "stored" / MANIFEST_FILE).exists()


def test_what_is_no_fault_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="faults_from_json"):
        FaultInjector([{"kind": "kill"}], tmp_path)  # type: ignore[list-item]
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="can't be written"):
        FaultInjector([], tmp_path / "file")


# ------------------------------------------------------------------ the driver's side


class _Nodes:
    def __init__(self) -> None:
        self.calls: list[Any] = []

    def add(self, num_cpus: int) -> None:
        self.calls.append(("add", num_cpus))

    def remove(self, number: int, *, is_graceful: bool) -> None:
        self.calls.append(("remove", number, is_graceful))


def test_the_driver_does_its_faults_when_the_run_comes_by_and_once(tmp_path: Path) -> None:
    nodes, own = _Nodes(), []
    faults = [
        Fault(act=Kill(), at_step=99),
        Fault(act=RemoveNode(), rank=2, at_step=1),
        Fault(act=AddNode(num_cpus=4), at_step=2),
        Fault(act=Own(name="mine"), at_step=2),
    ]
    side = DriverFaults(faults, tmp_path, nodes=nodes, own={"mine": lambda: own.append(1)})
    assert side.do_due() == 0, "the run has not begun"
    model, scheduler = build()
    injector, done = FaultInjector(faults, tmp_path), []
    for _ in range(4):
        train(model, scheduler, injector, 1)
        done.append(side.do_due())
    assert done == [0, 1, 2, 0]
    assert newest_progress(tmp_path) == (3, 0)
    assert (nodes.calls, own) == ([("remove", 2, False), ("add", 4)], [1])
    again = DriverFaults(faults, tmp_path, nodes=nodes, own={"mine": lambda: own.append(1)})
    assert again.do_due() == 0
    assert [each.number for each in read_happened(tmp_path)] == [1, 2, 3]


def test_what_goes_wrong_in_a_fault_of_the_driver_is_told_at_the_end(tmp_path: Path) -> None:
    has_failed = threading.Event()

    def fail() -> None:
        has_failed.set()
        raise RuntimeError("no such node")

    train(*build(), FaultInjector([], tmp_path), 2)
    side = DriverFaults([Fault(act=Own(name="mine"), at_step=0)], tmp_path, own={"mine": fail})
    with pytest.raises(RuntimeError, match="no such node"), side:
        assert has_failed.wait(30)


def test_a_fault_that_nothing_can_do_is_refused_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nodes=ClusterNodes"):
        DriverFaults([Fault(act=RemoveNode(), at_step=0)], tmp_path)
    with pytest.raises(ConfigError, match=r"own='mine', which own=.* lacks; it has other"):
        DriverFaults([Fault(act=Own(name="mine"), at_step=0)], tmp_path, own={"other": print})


def test_importing_the_library_brings_in_no_fault_injection() -> None:
    code = "import sys, hdet_ray; print(any(m.startswith('hdet_ray.testing') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_the_scheduler_is_all_that_the_injector_needs(tmp_path: Path) -> None:
    """Under any launcher: no Ray in it."""
    collective = SimpleNamespace(rank=0, world_size=2)
    scheduler: Any = SimpleNamespace(iterations=7, plan=SimpleNamespace(round=3), collective=collective)
    FaultInjector([], tmp_path).before_step(scheduler)
    assert newest_progress(tmp_path) == (7, 3)
