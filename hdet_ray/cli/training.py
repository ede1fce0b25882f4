"""`hdet train`: a built-in workload under `HDETTrainer`, on a Ray of its own on this machine."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray.train import Result, RunConfig, ScalingConfig, UserCallback
from rich.console import Console

from hdet_ray.cli.assignments import parse_assignments
from hdet_ray.cli.live import RoundPrinter, RunTable
from hdet_ray.cli.local_ray import fit, local_ray
from hdet_ray.cli.summary import headline
from hdet_ray.cli.tail import LedgerTail
from hdet_ray.core.codec import to_json
from hdet_ray.train.layout import LEDGER_FILE
from hdet_ray.train.trainer import HDETTrainer
from hdet_ray.view.numbers import loss_text
from hdet_ray.workloads import load_workload

METRICS_FILE = "metrics.json"
"""Beside the ledger: the newest value of everything that the loop reported."""


def train_workload(
    workload: str, assignments: Sequence[str], *, replicas: int, out: Path, name: str | None
) -> None:
    """Train, show the run live, and print what came out and where it lies.

    Args:
        workload: Name of a built-in workload.
        assignments: Settings as ``key=value``.
        replicas: Replicas, one process each.
        out: Folder of this workload's runs.
        name: The run's folder in it; one that was broken off goes on. None takes the next free number.

    Raises:
        ConfigError: no such workload or setting, or a value that can't work.
        HDETError: the run failed.
    """
    module = load_workload(workload)
    config = parse_assignments(assignments, defaults_of(module.Settings))
    module.Settings.from_config(config)  # what can't work is said before Ray is started
    run_name = name or _free_name(out)
    storage = out.expanduser().resolve()
    console = Console()
    console.print(f"Starting Ray with {replicas} workers …", style="dim")
    ledger, metrics = storage / run_name / LEDGER_FILE, storage / run_name / METRICS_FILE
    with local_ray(replicas):
        trainer = HDETTrainer(
            module.train_loop_per_worker,
            train_loop_config=config,
            scaling_config=ScalingConfig(num_workers=replicas),
            run_config=RunConfig(
                name=run_name,
                storage_path=str(storage),
                callbacks=[NewestMetrics(str(metrics))],  # type: ignore[list-item]  # typed for Ray's old API
            ),
        )
        table, tail = RunTable(f"{workload}, {replicas} replicas"), LedgerTail(ledger)
        with RoundPrinter(console) as printer:
            result = fit(trainer, lambda: printer.show(table, tail.poll()))
            printer.leave(table)
    _tell(console, result, table, ledger, metrics)


class NewestMetrics(UserCallback):
    """Keeps what the loop reported in a file: Ray's own result has the checkpoints' metrics only.

    Args:
        path: The file; a text, since this object travels to the process that takes the reports.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._newest: dict[str, Any] = {}

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Called by Ray for each report, with one dict a rank."""
        self._newest.update(metrics[0])
        Path(self._path).write_text(json.dumps(to_json(self._newest), indent=1) + "\n", encoding="utf-8")


def defaults_of(settings: type[Any]) -> dict[str, object]:
    """Every field of a settings class with its default; None where it has none."""
    return {
        field.name: None if field.default is dataclasses.MISSING else field.default
        for field in dataclasses.fields(settings)
    }


def _free_name(out: Path) -> str:
    number = 1
    while (out / f"run-{number}").exists():
        number += 1
    return f"run-{number}"


def _tell(console: Console, result: Result, table: RunTable, ledger: Path, metrics: Path) -> None:
    if table.history is not None:
        console.print(headline(table.history), highlight=False)
    reported = json.loads(metrics.read_text(encoding="utf-8")) if metrics.exists() else {}
    for name in ("val_loss", "test_loss"):
        if name in reported:
            console.print(f"{name.replace('_', ' '):<11} {loss_text(reported[name])}", highlight=False)
    if result.checkpoint is not None:
        console.print(f"checkpoint  {result.checkpoint.path}", highlight=False, soft_wrap=True)
    console.print(f"ledger      {ledger}", highlight=False, soft_wrap=True)
    console.print(f"Draw it with: hdet report {ledger}", highlight=False, soft_wrap=True)
