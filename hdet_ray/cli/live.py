"""The live table of a run: where it is, what each replica does, what the search has found so far.

It draws rounds and knows nothing of where they come from: a local ledger's tail feeds it now, a service's
stream of rounds can as well. On a terminal it redraws in place, elsewhere it prints one line a round.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from itertools import pairwise

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hdet_ray.cli.summary import notes_of
from hdet_ray.core.plan import RATE
from hdet_ray.core.replay import LedgerItem
from hdet_ray.core.search import Point, Search, pool
from hdet_ray.core.state import ScheduleState
from hdet_ray.view.history import History, Round
from hdet_ray.view.numbers import duration_text, loss_text, rate_text

Clock = Callable[[], float]

_MAX_REPLICA_ROWS = 12
_MAX_POINT_ROWS = 16
_MAX_NOTES = 3
_ROUNDS_FOR_SPEED = 4
_PHASE_STYLES = {"scout": "yellow", "pairs": "magenta", "train": "cyan", "fan_out": "cyan"}


class RunTable:
    """One run's table; feed it, then print it (it is a Rich renderable).

    Args:
        title: Stands above the table.
        clock: Seconds; tells the speed where reports don't.
    """

    def __init__(self, title: str, clock: Clock = time.monotonic) -> None:
        self.title = title
        self.history: History | None = None
        self._clock = clock
        self._arrivals: list[tuple[int, float]] = []
        """(step, seconds) of the newest rounds."""

    def add(self, news: ScheduleState | LedgerItem) -> Round | None:
        """Take in the initial state (once, first) or a round; gives the round back.

        Raises:
            LedgerError: the round does not follow from those before it.
        """
        if isinstance(news, ScheduleState):
            self.history = History(news)
            self._arrivals = [(news.step, self._clock())]
            return None
        if self.history is None:
            raise TypeError("feed the initial state before the first round")
        newest = self.history.add(news)
        arrived = self._clock()
        if "wall_s" in newest.report.facts:
            arrived = self._arrivals[-1][1] + newest.report.facts["wall_s"]
        self._arrivals = [*self._arrivals[-_ROUNDS_FOR_SPEED:], (newest.end_step, arrived)]
        return newest

    @property
    def newest_notes(self) -> tuple[str, ...]:
        """What the newest round left to tell."""
        rounds = self.history.rounds if self.history else []
        return rounds[-1].upcoming.notes if rounds else ()

    @property
    def is_over(self) -> bool:
        """The newest round was the schedule's last, or the run failed."""
        return bool(self.history and self.history.rounds and self.history.rounds[-1].upcoming.num_steps == 0)

    @property
    def eta_s(self) -> float | None:
        """Seconds to the last step at the speed of the newest rounds; None before there is one."""
        if self.history is None:
            return None
        moves = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(self._arrivals) if b[0] > a[0]]
        steps, seconds = sum(m[0] for m in moves), sum(m[1] for m in moves)
        if steps == 0 or seconds <= 0:
            return None
        state = self.history.state
        return max(state.config.total_steps - state.step, 0) * seconds / steps

    def line(self, done: Round) -> str:
        """A finished round in one line, for logs."""
        plan, total = done.plan, done.plan.total_steps
        rates = [done.rate_of(r) for r in range(plan.num_replicas)]
        spread = rate_text(rates[0])
        if len(set(rates)) > 1:
            spread = f"{rate_text(min(rates))} … {rate_text(max(rates))}"
        parts = [
            f"round {plan.round:>3}",
            f"{plan.phase:<7}",
            f"step {done.end_step:>{len(str(total))}}/{total}",
            f"base rate {rate_text(_base_rate(done))}",
            f"replicas {'try' if plan.is_search else 'end at'} {spread}",
            f"loss {_losses_in_line(done)}",
        ]
        if done.after.search is not None:
            parts.append(_finding(done.after.search, done.after.config.max_lr[0]))
        parts.append(f"ETA {duration_text(self.eta_s)}")
        return " | ".join(parts)

    def __rich__(self) -> RenderableType:
        if self.history is None:
            return Text.assemble((self.title, "bold"), ("   starting …", "dim"))
        parts: list[RenderableType] = [self._header(self.history)]
        newest = self.history.rounds[-1] if self.history.rounds else None
        search, max_lr = self.history.state.search, self.history.state.config.max_lr[0]
        if newest is not None:
            body = Table.grid(padding=(0, 4))
            body.add_column(vertical="top")
            body.add_column(vertical="top")
            replicas = Group(Text(f"round {newest.plan.round}: {newest.plan.phase}"), _replicas_table(newest))
            body.add_row(replicas, _search_part(search, max_lr) if search else "")
            parts.append(Padding(body, (1, 0, 0, 2)))
        notes = notes_of(self.history)[-_MAX_NOTES:]
        parts += [Padding(Text(f"! {note}", style="yellow"), (0, 0, 0, 2)) for note in notes]
        return Group(*parts)

    def _header(self, history: History) -> RenderableType:
        state = history.state
        total = state.config.total_steps
        newest = history.rounds[-1] if history.rounds else None
        is_over = self.is_over
        phase = newest.upcoming.phase if newest else ("scout" if state.is_searching else "train")
        where = Text.assemble(
            (self.title, "bold"),
            (
                "   done" if is_over else f"   {phase}",
                "bold green" if is_over else f"bold {_PHASE_STYLES[phase]}",
            ),
            f"   round {state.round}   step {state.step}/{total}   ",
        )
        eta = "" if is_over else f"   ETA {duration_text(self.eta_s)}"
        base = newest.upcoming.base.get((RATE, 0)) if newest else None
        peak = newest.upcoming.peak.get((RATE, 0)) if newest else state.config.max_lr[0]
        given = rate_text(state.config.max_lr[0])
        now = "" if is_over else f"base rate {rate_text(base)}, "
        rate = f"   {now}peak {rate_text(peak)} (given: {given})"
        bar = Table.grid()
        bar.add_row(where, ProgressBar(total=total, completed=state.step, width=24), Text(eta))
        return Group(bar, Text(rate, style="dim"))


class RoundPrinter:
    """Shows tables as rounds arrive: redrawn in place on a terminal, a line a round elsewhere.

    Use it as a context manager around everything that prints.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> RoundPrinter:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, table: RunTable, news: Iterable[ScheduleState | LedgerItem]) -> None:
        """Feed a table what is new, and show it.

        Raises:
            LedgerError: a round does not follow from those before it.
        """
        for item in news:
            newest = table.add(item)
            if self._live is None:
                line = table.title if newest is None else table.line(newest)
                notes = item.notes if isinstance(item, ScheduleState) else table.newest_notes
                for text in (line, *(f"! {note}" for note in notes)):
                    self.console.print(text, soft_wrap=True, highlight=False)
        if self._live is not None:
            self._live.update(table, refresh=True)

    def tell(self, table: RunTable, text: Text) -> None:
        """Show a table that changed by something else than a round; off a terminal, print the text."""
        if self._live is None:
            self.console.print(text, soft_wrap=True, highlight=False)
        else:
            self._live.update(table, refresh=True)

    def leave(self, table: RunTable) -> None:
        """Let a finished table stand and go on below it."""
        if self._live is not None:
            self._live.update("", refresh=True)
            self._live.console.print(table)
            self._live.console.print()


def _base_rate(done: Round) -> float | None:
    return done.plan.peak.get((RATE, 0)) if done.plan.is_search else done.plan.base.get((RATE, 0))


def _losses_in_line(done: Round) -> str:
    texts = [
        "dead" if done.is_dead(r) else loss_text(_shown_loss(done, r)) for r in range(done.plan.num_replicas)
    ]
    if len(texts) <= _MAX_REPLICA_ROWS:
        return " ".join(texts)
    live = [x for r in range(len(texts)) if math.isfinite(x := _shown_loss(done, r))]
    low, high = (min(live), max(live)) if live else (math.nan, math.nan)
    return f"{loss_text(low)} … {loss_text(high)} ({texts.count('dead')} of {len(texts)} dead)"


def _shown_loss(done: Round, replica: int) -> float:
    report = done.report.replicas[replica]
    return report.probe_loss if done.plan.is_search and report.probe_loss is not None else report.loss


def _finding(search: Search, max_lr: float) -> str:
    if search.result is None and all(p.is_dead for p in search.points):
        return "no live candidate yet"
    name = "found" if search.result is not None else "best so far"
    suffix = " (suspect)" if search.is_suspect else ""
    return f"{name} {rate_text(max_lr * math.exp(search.best))}{suffix}"


def _replicas_table(done: Round) -> Table:
    plan = done.plan
    has_probe = plan.probe is not None
    headings = ["replica", "team", "rate" if plan.is_search else "last rate", "loss"]
    table = _bare_table(*headings, *(["probe loss"] if has_probe else []), "")
    for r in range(min(plan.num_replicas, _MAX_REPLICA_ROWS)):
        report, team = done.report.replicas[r], plan.teams[r]
        cells = [
            str(r),
            "–" if team is None else str(team),
            rate_text(done.rate_of(r)),
            loss_text(report.loss),
        ]
        if has_probe:
            cells.append(loss_text(report.probe_loss))
        reason = done.verdict.reasons[r] or ("dead" if done.is_dead(r) else "")
        table.add_row(*cells, reason, style="red" if reason else "")
    hidden = plan.num_replicas - _MAX_REPLICA_ROWS
    if hidden > 0:
        table.add_row("…", "", "", f"{hidden} more", style="dim")
    return table


def _search_part(search: Search, max_lr: float) -> RenderableType:
    return Group(Text(f"search: {_finding(search, max_lr)}"), _points_table(search, max_lr))


def _points_table(search: Search, max_lr: float) -> Table:
    """What was tried, by rising rate: losses on the scouts' and on the pairs' probe samples."""
    table = _bare_table("rate", "scout", "pairs", "")
    pooled = {phase: {p.c: p for p in pool(search.points, phase)} for phase in ("scout", "pairs")}
    rates = sorted({*pooled["scout"], *pooled["pairs"]})
    for c in _around(rates, search.best):
        cells = [_point_text(pooled[phase].get(c)) for phase in ("scout", "pairs")]
        is_best = abs(c - search.best) < 1e-9
        table.add_row(
            rate_text(max_lr * math.exp(c)),
            *cells,
            "◀ best" if is_best else "",
            style="bold green" if is_best else "",
        )
    return table


def _bare_table(*headings: str) -> Table:
    table = Table(box=None, padding=(0, 1))
    for heading in headings:
        table.add_column(heading, justify="right", header_style="dim")
    return table


def _around(rates: list[float], best: float) -> list[float]:
    """The rates next to the best, as many as have room."""
    nearest = sorted(rates, key=lambda c: abs(c - best))[:_MAX_POINT_ROWS]
    return sorted(nearest)


def _point_text(point: Point | None) -> Text:
    if point is None:
        return Text("")
    if point.is_dead:
        return Text("dead" if point.loss is None else f"{loss_text(point.loss)} dead", style="red")
    return Text(loss_text(point.loss))
