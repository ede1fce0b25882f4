"""Jobs on a terminal: the list, and one job in full."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hdet_ray.cli.times import ago_text, clock_text
from hdet_ray.view.numbers import duration_text

if TYPE_CHECKING:
    from hdet_service.client import Job

STATE_STYLES: Mapping[str, str] = {
    "QUEUED": "yellow",
    "STARTING": "cyan",
    "RUNNING": "bold cyan",
    "DEGRADED": "bold yellow",
    "STOPPING": "yellow",
    "PAUSED": "magenta",
    "SUCCEEDED": "bold green",
    "FAILED": "bold red",
    "CANCELED": "dim",
}
_OVER = frozenset({"SUCCEEDED", "FAILED", "CANCELED"})
_PLAIN_REASONS = frozenset({"Running", "Completed", "Canceled", "Paused", "Starting"})
"""Reasons that say no more than the state beside them."""


def state_text(job: Mapping[str, Any]) -> Text:
    """The state in its colour, and the reason where it tells more."""
    text = Text(str(job["state"]), style=STATE_STYLES.get(str(job["state"]), ""))
    if job["reason"] and job["reason"] not in _PLAIN_REASONS:
        text.append(f" {job['reason']}", style="dim")
    return text


def jobs_table(jobs: Sequence[Job]) -> Table:
    """The list, a line a job."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("ID", "NAME", "STATE", "STEP", "", "REPLICAS", "ETA", "OWNER", "AGE"):
        table.add_column(
            heading, no_wrap=True, justify="right" if heading in ("STEP", "REPLICAS") else "left"
        )
    table.columns[1].overflow = "ellipsis"
    table.columns[1].max_width = 28
    for job in jobs:
        progress = job["progress"]
        is_over = job["state"] in _OVER
        table.add_row(
            job["id"],
            Text(job["name"], style="" if is_over else "bold"),
            state_text(job),
            _step_text(progress),
            _bar(progress, width=10),
            _replicas_text(job, "/"),
            "" if is_over else duration_text(progress.get("eta_s")),
            job.get("owner", ""),
            ago_text(job.get("created_at")),
        )
    return table


def job_view(job: Job) -> RenderableType:
    """One job: where it stands, what was asked for, and how it came here."""
    progress = job["progress"]
    head = Text.assemble((job["name"], "bold"), "   ", state_text(job), "   ", (job["id"], "dim"))
    facts = Table.grid(padding=(0, 3))
    facts.add_column(style="dim")
    facts.add_column()
    rows: list[tuple[str, RenderableType]] = [
        ("message", job["message"] or "–"),
        ("step", _with_bar(progress)),
        ("speed", _speed_text(progress)),
        ("replicas", _replicas_text(job, " of ")),
        ("attempt", f"{job['attempt']}" + (f", {job['failures']} failures" if job.get("failures") else "")),
        ("owner", job.get("owner", "–")),
        ("created", ago_text(job.get("created_at"))),
        ("started", ago_text(job.get("started_at"))),
        ("finished", ago_text(job.get("finished_at"))),
        ("labels", ", ".join(f"{k}={v}" for k, v in (job.get("labels") or {}).items()) or "–"),
        ("entrypoint", str((job.get("spec") or {}).get("entrypoint", "–"))),
        ("config", _config_text((job.get("spec") or {}).get("config") or {})),
    ]
    for name, value in rows:
        facts.add_row(name, value)
    parts: list[RenderableType] = [head, Padding(facts, (1, 0, 0, 2), expand=False)]
    transitions = job.get("transitions") or []
    if transitions:
        parts.append(Padding(_transitions_table(transitions), (1, 0, 0, 2), expand=False))
    return Group(*parts)


def _transitions_table(transitions: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("WHEN", "STATE", "REASON", "MESSAGE"):
        table.add_column(heading)
    for item in transitions:
        state = str(item["state"])
        table.add_row(
            clock_text(item.get("at") or item.get("at_s")),
            Text(state, style=STATE_STYLES.get(state, "")),
            str(item.get("reason", "")),
            str(item.get("message", "")),
        )
    return table


def _replicas_text(job: Job, between: str) -> str:
    replicas = job["replicas"]
    wanted = str(replicas["wanted"])
    return wanted if job["state"] in _OVER else f"{replicas['present']}{between}{wanted}"


def _step_text(progress: Mapping[str, Any]) -> str:
    total = progress.get("total_steps")
    return f"{progress.get('step') or 0}/{total}" if total else "–"


def _bar(progress: Mapping[str, Any], *, width: int) -> RenderableType:
    total = progress.get("total_steps")
    return ProgressBar(total=total, completed=progress.get("step") or 0, width=width) if total else ""


def _with_bar(progress: Mapping[str, Any]) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_row(_step_text(progress), _bar(progress, width=30))
    return grid


def _speed_text(progress: Mapping[str, Any]) -> str:
    speed = progress.get("steps_per_s")
    if not speed:
        return "–"
    return f"{speed:.3g} steps/s, {duration_text(progress.get('eta_s'))} to go"


def _config_text(config: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in config.items()) or "–"
