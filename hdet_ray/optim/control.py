"""Control: where a round's report goes and the next plan comes from. Rank 0 only.

The local one decides in this process and keeps the ledger. A remote one has the same interface: it
carries the report to a controller that runs the same pure function.
"""

from __future__ import annotations

import os
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from hdet_ray.core.decide import decide
from hdet_ray.core.overrides import Freeze, Override, Removal, SetBounds
from hdet_ray.core.plan import Plan
from hdet_ray.core.replay import Ledger, header_line, item_line, read_ledger
from hdet_ray.core.report import RoundReport
from hdet_ray.core.state import ScheduleState
from hdet_ray.core.steering import check_override
from hdet_ray.exceptions import LedgerError

Command = Override | Removal | Freeze | SetBounds


class Control(Protocol):
    """Decides; called on rank 0 alone, whose answer is then broadcast."""

    def resume(self, state: ScheduleState) -> None:
        """An attempt begins at this state: the first one, or one restored from a checkpoint."""

    def exchange(self, state: ScheduleState, report: RoundReport) -> tuple[ScheduleState, Plan]:
        """Hand over a round's report, take the next round's plan."""


class LocalControl:
    """Decides in this process.

    Args:
        ledger: File that gets one JSON line a round; ``None`` keeps none. A file that holds an earlier
            attempt of the same run is continued.
    """

    def __init__(self, ledger: str | os.PathLike[str] | None = None) -> None:
        self._path = None if ledger is None else Path(ledger)
        self._attempt = 1
        self._state: ScheduleState | None = None
        self._commands: deque[Command] = deque()

    @property
    def ledger(self) -> Path | None:
        """The ledger's file."""
        return self._path

    def submit(self, command: Command) -> None:
        """Hand in an override or another command: it takes effect at the next boundary, on all replicas.

        Raises:
            OverrideError: unknown hyperparameter, or a value outside its bounds.
        """
        if isinstance(command, Override) and self._state is not None:
            check_override(self._state, command)
        self._commands.append(command)

    def resume(self, state: ScheduleState) -> None:
        """Open the ledger: a new one, or the next attempt of what stands there."""
        self._state = state
        if self._path is not None:
            self._attempt = open_ledger(self._path, state)

    def exchange(self, state: ScheduleState, report: RoundReport) -> tuple[ScheduleState, Plan]:
        """Decide, and write the round's line before anyone acts on it."""
        commands = tuple(self._commands.popleft() for _ in range(len(self._commands)))
        report = replace(report, commands=report.commands + commands)
        self._state, plan = decide(state, report)
        if self._path is not None:
            append_line(self._path, item_line(self._attempt, report, plan))
        return self._state, plan


def open_ledger(path: Path, state: ScheduleState) -> int:
    """The number of the attempt that begins; starts a new file where the old one doesn't lead there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ledger = _read_whole_lines(path)
    if ledger is not None and ledger.state.config == state.config:
        reached = ledger.state.round + len(ledger.items)
        if ledger.state.round <= state.round <= reached and (ledger.items or state.round > 0):
            return 1 + max((item.attempt for item in ledger.items), default=0)
    if path.exists():
        path.replace(path.with_name(f"{path.name}.{_next_number(path)}"))
    append_line(path, header_line(state))
    return 1


def _read_whole_lines(path: Path) -> Ledger | None:
    """The ledger that stands there; a last line that a crash cut short is taken off the file."""
    if not path.exists():
        return None
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    try:
        return read_ledger(whole.splitlines())
    except LedgerError:
        return None


def _next_number(path: Path) -> int:
    return 1 + sum(1 for _ in path.parent.glob(f"{path.name}.*"))


def append_line(path: Path, line: str) -> None:
    """Add a line to a ledger's file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
