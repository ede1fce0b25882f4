"""`hdet demo`: four replicas start from a rate 30 times too low, next to what they should be compared with.

Three runs of one small model under Ray Train: plain one-cycle from the wrong rate, the search from the same
rate, plain one-cycle at a well-tuned rate. What it writes: ``ledger.jsonl`` (of the run that searched),
``plain.jsonl`` and ``tuned.jsonl``, ``result.json``, ``report.html``, ``report.png``.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ray.train import RunConfig, ScalingConfig
from rich.console import Console

from hdet_ray.cli.demo_loop import train_arms
from hdet_ray.cli.live import RoundPrinter, RunTable
from hdet_ray.cli.local_ray import fit, local_ray
from hdet_ray.cli.replaying import read_ledger_file
from hdet_ray.cli.report import write_report
from hdet_ray.cli.tail import LedgerTail
from hdet_ray.cli.verdict import Verdict
from hdet_ray.train.trainer import HDETTrainer
from hdet_ray.view.history import History
from hdet_ray.view.numbers import duration_text, loss_text, rate_text
from hdet_ray.view.series import Reference

TUNED_RATE = 0.02
"""The best of nine max_lr from 2e-3 to 6e-2, by mean validation loss of three seeds at 1,500 steps."""
WRONG_BY = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One of the three runs."""

    name: str
    title: str
    controller: str
    max_lr: float
    ledger: Path


def run_demo(*, steps: int, replicas: int, out: Path, seed: int) -> None:
    """Train the three, show them live, and write the verdict, the report and the picture.

    Args:
        steps: Steps of each run; below 352 there is no room for a search.
        replicas: Replicas, one process each.
        out: Folder of what is written; made where missing, files of an earlier demo are replaced.
        seed: Of initial weights, data and assignments.

    Raises:
        HDETError: a setting that can't work, or a run that failed.
    """
    started_s = time.monotonic()
    console = Console()
    out.mkdir(parents=True, exist_ok=True)
    arms = _arms(out.resolve())
    for arm in arms:
        arm.ledger.unlink(missing_ok=True)
    console.print(f"Starting Ray with {replicas} workers …", style="dim")
    with local_ray(replicas) as folder:
        trainer = _trainer(arms, folder, steps=steps, replicas=replicas, seed=seed)
        outcomes = _train(trainer, arms, console)
    histories = {arm.name: History.of(read_ledger_file(arm.ledger)) for arm in arms}
    losses = {arm.name: outcome for arm, outcome in zip(arms, outcomes, strict=True)}
    verdict = _verdict(histories["auto"], losses)
    wall_s = time.monotonic() - started_s
    _write_result(out, verdict, losses, replicas=replicas, seed=seed, wall_s=wall_s)
    _write_report(out, histories, verdict)
    console.print()
    console.print(verdict.paragraph(), style="bold", highlight=False)
    console.print(
        f"\nTook {duration_text(wall_s)}. Wrote {out}/report.html, report.png, ledger.jsonl and result.json."
    )


def _arms(out: Path) -> tuple[Arm, ...]:
    wrong = TUNED_RATE / WRONG_BY
    return (
        Arm(
            name="plain",
            title=f"1 of 3: plain one-cycle from max_lr {rate_text(wrong)}, {WRONG_BY:.0f}× too low",
            controller="plain",
            max_lr=wrong,
            ledger=out / "plain.jsonl",
        ),
        Arm(
            name="auto",
            title=f"2 of 3: replicas that search, from max_lr {rate_text(wrong)}",
            controller="auto",
            max_lr=wrong,
            ledger=out / "ledger.jsonl",
        ),
        Arm(
            name="tuned",
            title=f"3 of 3: plain one-cycle at a well-tuned max_lr {rate_text(TUNED_RATE)}",
            controller="plain",
            max_lr=TUNED_RATE,
            ledger=out / "tuned.jsonl",
        ),
    )


def _trainer(arms: Sequence[Arm], folder: Path, *, steps: int, replicas: int, seed: int) -> HDETTrainer:
    settings = {"preset": "tiny", "total_steps": steps, "seed": seed}
    config = [
        {
            "settings": {**settings, "controller": arm.controller, "max_lr": arm.max_lr},
            "ledger": str(arm.ledger),
        }
        for arm in arms
    ]
    return HDETTrainer(
        train_arms,
        train_loop_config={"arms": config},
        scaling_config=ScalingConfig(num_workers=replicas),
        run_config=RunConfig(name="demo", storage_path=str(folder / "storage")),
    )


def _train(trainer: HDETTrainer, arms: Sequence[Arm], console: Console) -> list[dict[str, Any]]:
    """Fit, and show each arm's table while it runs."""
    shown = [(RunTable(arm.title), LedgerTail(arm.ledger)) for arm in arms]
    with RoundPrinter(console) as printer:

        def show() -> None:
            while shown:
                table, tail = shown[0]
                printer.show(table, tail.poll())
                if not table.is_over:
                    return
                printer.leave(table)
                shown.pop(0)

        outcomes: list[dict[str, Any]] = fit(trainer, show).return_value
    return outcomes


def _verdict(auto: History, losses: Mapping[str, Mapping[str, Any]]) -> Verdict:
    state = auto.state
    search = state.search
    result = None if search is None else search.result
    points = search.points if search is not None else ()
    return Verdict(
        given_rate=state.config.max_lr[0],
        tuned_rate=TUNED_RATE,
        plain_loss=losses["plain"]["test_loss"],
        auto_loss=losses["auto"]["test_loss"],
        tuned_loss=losses["tuned"]["test_loss"],
        found_rate=None if result is None else state.config.max_lr[0] * math.exp(result),
        search_steps=state.search_steps,
        total_steps=state.config.total_steps,
        candidates=len(points),
        dead=sum(p.is_dead for p in points),
        is_suspect=search is not None and search.is_suspect,
    )


def _write_result(
    out: Path,
    verdict: Verdict,
    losses: Mapping[str, Mapping[str, Any]],
    *,
    replicas: int,
    seed: int,
    wall_s: float,
) -> None:
    result = {
        **asdict(verdict),
        "gap_closed": verdict.gap_closed,
        "behind_tuned": verdict.behind_tuned,
        "replicas": replicas,
        "seed": seed,
        "arms": losses,
        "wall_s": round(wall_s, 1),
        "verdict": verdict.paragraph(),
    }
    (out / "result.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _write_report(out: Path, histories: Mapping[str, History], verdict: Verdict) -> None:
    references = [
        Reference(label="plain one-cycle, same start", history=histories["plain"]),
        Reference(label="plain one-cycle, well tuned", history=histories["tuned"]),
    ]
    facts = [
        ("test loss, plain", loss_text(verdict.plain_loss)),
        ("test loss, search", loss_text(verdict.auto_loss)),
        ("test loss, tuned", loss_text(verdict.tuned_loss)),
    ]
    auto = histories["auto"]
    write_report(
        auto,
        page=out / "report.html",
        picture=out / "report.png",
        title=f"A rate {WRONG_BY:.0f}× too low: what {auto.num_replicas} replicas found",
        text=verdict.paragraph(),
        references=references,
        more_facts=facts,
    )
