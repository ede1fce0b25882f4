"""The live table: what it says of a run while the ledger grows."""

from __future__ import annotations

import io
import math
from pathlib import Path

import pytest
from rich.console import Console

from hdet_ray.cli.live import RoundPrinter, RunTable
from hdet_ray.cli.tail import LedgerTail
from hdet_ray.config import Fixed
from hdet_ray.core.replay import LedgerItem, read_ledger
from hdet_ray.core.state import ScheduleState
from hdet_ray.exceptions import LedgerError
from tests.unit.synthetic_ledger import bowl, ledger_lines


class HandClock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def news_of(lines: list[str]) -> list[ScheduleState | LedgerItem]:
    ledger = read_ledger(lines)
    return [ledger.state, *ledger.items]


def drawn(table: RunTable, width: int = 110) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(table)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def fed(lines: list[str]) -> RunTable:
    table = RunTable("a run")
    for item in news_of(lines):
        table.add(item)
    return table


def dies_above_a_tenth(rate: float, progress: float) -> float:
    return math.nan if rate > 0.1 else bowl(rate, progress)


def test_a_table_before_the_first_round_says_that_it_starts() -> None:
    assert "starting" in drawn(RunTable("a run"))


def test_the_table_shows_phase_round_rates_losses_and_what_was_found() -> None:
    text = drawn(fed(ledger_lines()))
    assert "a run" in text
    assert "step 900/900" in text
    assert "found 0.0300" in text
    for heading in ("replica", "team", "rate", "loss", "scout", "pairs"):
        assert heading in text


def test_during_the_search_the_best_candidate_so_far_is_marked() -> None:
    text = drawn(fed(ledger_lines(num_rounds=1)))
    assert "best so far" in text
    assert text.count("◀ best") == 1


def test_dead_candidates_are_marked() -> None:
    text = drawn(fed(ledger_lines(max_lr=0.9, loss_of=dies_above_a_tenth, num_rounds=1)))
    assert "dead" in text


def test_no_best_candidate_is_claimed_while_all_died() -> None:
    text = drawn(fed(ledger_lines(max_lr=900.0, loss_of=dies_above_a_tenth, num_rounds=1)))
    assert "no live candidate yet" in text
    assert "best" not in text


def test_a_run_with_many_replicas_still_fits_a_screen() -> None:
    text = drawn(fed(ledger_lines(num_replicas=64, num_rounds=2)))
    assert "52 more" in text
    assert len(text.splitlines()) < 30


def test_the_table_fits_eighty_columns() -> None:
    lines = drawn(fed(ledger_lines(num_rounds=4)), width=80).splitlines()
    assert max(len(line) for line in lines) <= 80


def test_the_time_left_follows_the_speed_of_the_newest_rounds() -> None:
    table = fed(ledger_lines(num_rounds=5))
    # Reports say 0.01 s a step; 220 of 900 steps are done.
    assert table.eta_s == pytest.approx(6.8)


def test_without_wall_times_the_clock_tells_the_speed() -> None:
    # Facts are for people: no plan follows from them.
    lines = [line.replace('"facts": {"wall_s"', '"facts": {"other_s"') for line in ledger_lines(num_rounds=2)]
    clock = HandClock()
    table = RunTable("a run", clock)
    for item in news_of(lines):
        table.add(item)
        clock.now_s += 2.0
    # Two rounds of 20 steps, 2 s each; 860 steps are left.
    assert table.eta_s == pytest.approx(86.0)


def test_no_time_left_is_claimed_before_a_round_is_over() -> None:
    assert RunTable("a run").eta_s is None
    assert fed(ledger_lines(num_rounds=0)).eta_s is None


def test_elsewhere_than_on_a_terminal_each_round_is_one_line() -> None:
    console = Console(file=io.StringIO(), width=40, force_terminal=False)
    with RoundPrinter(console) as printer:
        printer.show(RunTable("a run"), news_of(ledger_lines()))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[0] == "a run"
    assert [line.split("|")[0].strip() for line in lines[1:3]] == ["round   0", "round   1"]
    assert len(lines) == 1 + len(ledger_lines()) - 1
    assert "found 0.0300" in lines[-1]


def test_a_run_too_short_for_a_search_says_so_once() -> None:
    console = Console(file=io.StringIO(), width=40, force_terminal=False)
    table = RunTable("a run")
    with RoundPrinter(console) as printer:
        printer.show(table, news_of(ledger_lines(total_steps=200)))
    assert console.file.getvalue().count("too short for a search") == 1  # type: ignore[attr-defined]
    assert "too short for a search" in " ".join(drawn(table).split())


def test_a_run_without_a_search_shows_no_candidates() -> None:
    text = drawn(fed(ledger_lines(controller=Fixed(alpha=0.0), num_rounds=3)))
    assert "scout" not in text
    assert "train" in text


def test_a_tail_gives_each_whole_line_once(tmp_path: Path) -> None:
    lines = ledger_lines(num_rounds=3)
    path = tmp_path / "ledger.jsonl"
    tail = LedgerTail(path)
    assert tail.poll() == []
    path.write_text(lines[0] + "\n" + lines[1][:50])
    assert [type(item) for item in tail.poll()] == [ScheduleState]
    path.write_text("\n".join(lines) + "\n")
    assert [item.round for item in tail.poll() if isinstance(item, LedgerItem)] == [0, 1, 2]
    assert tail.poll() == []


def test_a_tail_names_the_line_that_it_cannot_read(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text(ledger_lines(num_rounds=0)[0] + "\nnot json\n")
    with pytest.raises(LedgerError, match="line 2"):
        LedgerTail(path).poll()


def test_a_restart_goes_on_from_the_round_that_it_repeats() -> None:
    lines = ledger_lines(num_rounds=3)
    again = lines[2].replace('"attempt": 1', '"attempt": 2')
    table = RunTable("a run")
    ledger = read_ledger(lines)
    for item in [ledger.state, *ledger.items, read_ledger([*lines, again]).items[-1]]:
        table.add(item)
    assert table.history is not None
    assert [r.plan.round for r in table.history.rounds] == [0, 1]
