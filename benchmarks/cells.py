"""The grid of `quality.py`: which runs there are, and how one part of a cell is computed.

A cell is a workload, an optimizer, a number of replicas and a length. Its parts are the sweep and one
part for each arm; each part is computed alone, in one process, and cached, so that an interruption
loses little.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from benchmarks.processes import RealRun, train_on_ranks
from benchmarks.simulation import new_run, simulate, stacked_network
from hdet_ray.config import Fixed
from hdet_ray.core.plan import Plan
from hdet_ray.core.report import RoundReport
from hdet_ray.core.state import ScheduleState
from hdet_ray.workloads import load_workload

ARMS = ("auto", "plain", "fixed", "paper")
STARTS = {"30x too low": 1 / 30, "right": 1.0, "30x too high": 30.0}
"""Factor of each start on the sweep's best rate."""
PARTS = ("sweep", *ARMS)
PLAIN_ARMS = ("sweep", "plain")
"""One-cycle alone: one round without boundaries, that nothing judges and nothing rolls back."""

_HALF_DECADES = {"adamw": range(-8, 0), "sgd": range(-5, 3), "adamw repeated": range(-11, -3)}
"""The sweep's rates are ``10 ** (e / 2)`` for these e: by optimizer, or by optimizer and variant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One configuration."""

    workload: str
    optimizer: str
    num_replicas: int
    total_steps: int
    variant: str = ""
    """A name for what ``options`` change."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further settings of the workload."""
    is_bounded: bool = True
    """Counts for the promises; others are reported only."""
    num_seeds: int = 5
    on_processes: bool = False
    """Trained by Gloo ranks instead of the simulation."""

    @property
    def key(self) -> str:
        """Its name in tables and in the cache."""
        variant = f" {self.variant}" if self.variant else ""
        where = "real processes, " if self.on_processes else ""
        return f"{where}{self.workload}{variant} {self.optimizer} N={self.num_replicas} S={self.total_steps}"

    @property
    def rates(self) -> list[float]:
        """Rates of the sweep, half a decade apart."""
        name = f"{self.optimizer} {self.variant}"
        return [10 ** (e / 2) for e in _HALF_DECADES.get(name, _HALF_DECADES[self.optimizer])]

    def settings(self) -> Any:
        """The workload's settings, of seed 0."""
        config = {"optimizer": self.optimizer, "total_steps": self.total_steps, "controller": "plain"}
        return load_workload(self.workload).Settings.from_config(config | dict(self.options))


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """What is kept of one run."""

    arm: str
    start: float
    """Factor on the sweep's best rate; 1 for the sweep's own runs."""
    rate: float
    """``max_lr`` at the start."""
    seed: int
    val_loss: float | None
    """``None``: not finite, or the run failed."""
    test_loss: float | None
    samples: int
    """Training samples forward and backward, all replicas together."""
    probed: int
    """Probe samples forward, all replicas together."""
    search_steps: int = 0
    found: float | None = None
    """``max_lr`` that a search ended with."""
    is_confirmed: bool | None = None
    is_suspect: bool | None = None
    rollbacks: int = 0
    failure: str | None = None


def compute_part(cell: Cell, part: str, best_rate: float | None) -> list[dict[str, Any]]:
    """Train every run of a part.

    Args:
        cell: The configuration.
        part: ``sweep`` or an arm.
        best_rate: The sweep's best rate, for an arm.
    """
    starts = [(1.0, rate) for rate in cell.rates]
    if best_rate is not None:
        starts = [(factor, best_rate * factor) for factor in STARTS.values()]
    train = _train_on_processes if cell.on_processes else _train_stacked
    return [asdict(record) for record in train(cell, part, starts)]


def best_of_sweep(records: Sequence[Mapping[str, Any]]) -> float:
    """The rate with the lowest median validation loss over the seeds."""
    by_rate: dict[float, list[float]] = {}
    for record in records:
        loss = record["val_loss"]
        by_rate.setdefault(record["rate"], []).append(math.inf if loss is None else loss)
    return min(by_rate, key=lambda rate: statistics.median(by_rate[rate]))


def _train_stacked(cell: Cell, arm: str, starts: Sequence[tuple[float, float]]) -> list[RunRecord]:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # Late in a run moments underflow, and denormal numbers are slow.
    module, base = load_workload(cell.workload), cell.settings()
    network = stacked_network(module, base)
    is_plain = arm in PLAIN_ARMS
    controller = Fixed(alpha=0.0, sync_every=cell.total_steps) if is_plain else arm
    runs = []
    for seed in range(cell.num_seeds):
        task = module.Task(replace(base, seed=seed))
        for factor, rate in starts:
            settings = replace(base, seed=seed, max_lr=rate, controller=controller)
            label = (arm, factor, seed)
            runs.append(new_run(label, settings, task, network, cell.num_replicas, is_judged=not is_plain))
    simulate(runs)
    weights = torch.cat([run.weights for run in runs])
    val, test = (
        network.mean_losses(weights, *runs[0].task.evaluation(split)).tolist() for split in ("val", "test")
    )
    return [
        _record(cell, run.label, run.state.config.max_lr[0], val[i], test[i], run.state, run.history)
        for i, run in enumerate(runs)
    ]


def _train_on_processes(cell: Cell, arm: str, starts: Sequence[tuple[float, float]]) -> list[RunRecord]:
    base = cell.settings()
    labels = [(arm, factor, seed) for seed in range(cell.num_seeds) for factor, _ in starts]
    runs = [
        RealRun(
            workload=cell.workload,
            settings=replace(base, seed=seed, max_lr=rate, controller="plain" if arm in PLAIN_ARMS else arm),
        )
        for seed in range(cell.num_seeds)
        for _, rate in starts
    ]
    outcomes = train_on_ranks(runs, cell.num_replicas)
    return [
        _record(cell, label, run.settings.max_lr, o.val_loss, o.test_loss, o.state, o.history)
        for label, run, o in zip(labels, runs, outcomes, strict=True)
    ]


def _record(
    cell: Cell,
    label: tuple[str, float, int],
    rate: float,
    val_loss: float,
    test_loss: float,
    state: ScheduleState | None,
    history: Sequence[tuple[Plan, RoundReport]],
) -> RunRecord:
    """What is kept of a run; ``state`` is ``None`` under torch's own scheduler."""
    search = None if state is None else state.search
    failure = None if state is None or state.failure is None else state.failure.reason
    is_valid = math.isfinite(val_loss + test_loss) and failure is None
    spans = [span for plan, _ in history for span in (plan.probe, plan.untrained_probe) if span is not None]
    plans = [plan for plan, _ in history]
    return RunRecord(
        arm=label[0],
        start=label[1],
        rate=rate,
        seed=label[2],
        val_loss=val_loss if is_valid else None,
        test_loss=test_loss if is_valid else None,
        samples=cell.total_steps * cell.num_replicas * cell.settings().batch_size,
        probed=sum(span.count for span in spans) * cell.num_replicas * cell.settings().probe_samples,
        search_steps=0 if state is None else state.search_steps,
        found=None if search is None or search.result is None else rate * math.exp(search.result),
        is_confirmed=None if search is None else search.is_confirmed,
        is_suspect=None if search is None else search.is_suspect,
        rollbacks=sum("rolled back" in note for plan in plans for note in plan.notes),
        failure=failure,
    )
