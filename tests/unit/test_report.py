"""The report: the page and the picture say what the ledger says, and ask nobody else."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import plotly.graph_objects
import pytest

from hdet_ray.cli.charts_plotly import panels_of
from hdet_ray.cli.report import write_report
from hdet_ray.cli.summary import headline
from hdet_ray.cli.verdict import Verdict
from hdet_ray.config import Fixed, Paper
from hdet_ray.core.plan import value_at
from hdet_ray.core.replay import read_ledger
from hdet_ray.exceptions import LedgerError
from hdet_ray.view.history import History
from hdet_ray.view.series import Reference, ReportSeries, series_of
from tests.unit.synthetic_ledger import BEST_RATE, bowl, ledger_lines


def history_of(**options: Any) -> History:
    return History.of(read_ledger(ledger_lines(**options)))


@pytest.fixture(scope="module")
def searched() -> History:
    return history_of()


@pytest.fixture(scope="module")
def tuned() -> History:
    return history_of(controller=Fixed(alpha=0.0), max_lr=BEST_RATE)


@pytest.fixture(scope="module")
def series(searched: History, tuned: History) -> ReportSeries:
    return series_of(searched, [Reference(label="tuned", history=tuned)])


@pytest.fixture(scope="module")
def page(searched: History, tuned: History, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    references = [Reference(label="tuned", history=tuned)]
    write_report(searched, page=path, title="A <run>", references=references)
    return path.read_text(encoding="utf-8")


class Elements(HTMLParser):
    """Every element with its attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_base_curve_has_a_rate_for_every_step(series: ReportSeries) -> None:
    assert series.base.x == tuple(range(900))
    assert None not in series.base.y


def test_the_fan_is_the_rate_that_each_replica_had_at_each_step(
    searched: History, series: ReportSeries
) -> None:
    plan = searched.rounds[1].plan
    for replica, curve in enumerate(series.fan):
        rates = dict(zip(curve.x, curve.y, strict=True))
        assert rates[plan.step + 7] == value_at(plan, "lr", 0, replica, plan.step + 7)


def test_the_bands_cover_the_run_without_a_gap(series: ReportSeries) -> None:
    assert [band.phase for band in series.bands] == ["scout", "pairs", "train"]
    assert series.bands[0].first_step == 0
    assert all(a.end_step == b.first_step for a, b in zip(series.bands, series.bands[1:], strict=False))
    assert series.bands[-1].end_step == 900


def test_every_candidate_of_the_search_is_drawn(searched: History, series: ReportSeries) -> None:
    assert series.search is not None
    assert searched.state.search is not None
    assert len(series.search.trials) == len(searched.state.search.points)
    assert series.search.result == pytest.approx(BEST_RATE, rel=0.05)


def test_the_parabola_goes_through_the_best_candidate(series: ReportSeries) -> None:
    assert series.search is not None
    phases = [phase for phase, _ in series.search.parabolas]
    assert phases == ["scout", "pairs"]
    for phase, curve in series.search.parabolas:
        best = min(
            (t for t in series.search.trials if t.phase == phase and not t.is_dead), key=lambda t: t.loss or 0
        )
        nearest = min(range(len(curve.x)), key=lambda i: abs(math.log(curve.x[i] / best.rate)))
        assert curve.y[nearest] == pytest.approx(best.loss, abs=2e-3)


def test_a_loss_that_is_not_finite_is_a_gap_and_never_an_invalid_number() -> None:
    dying = history_of(max_lr=0.9, loss_of=lambda rate, t: math.nan if rate > 0.1 else bowl(rate, t))
    drawn = series_of(dying)
    assert any(None in curve.y for curve in drawn.losses)
    json.dumps([panel.figure for panel in panels_of(drawn)], allow_nan=False)


def test_a_reference_that_equals_plain_one_cycle_is_not_drawn_twice(searched: History) -> None:
    same = history_of(controller=Fixed(alpha=0.0))
    drawn = series_of(searched, [Reference(label="same rate", history=same)])
    assert drawn.reference_rates == ()
    assert [curve.label for curve in drawn.reference_losses] == ["same rate"]


def test_the_page_loads_nothing_from_anywhere(page: str) -> None:
    elements = Elements(page).found
    assert not [a for tag, a in elements if tag == "script" and "src" in a]
    links = [a.get("href") or "" for tag, a in elements if tag == "link"]
    assert all(href.startswith("data:") for href in links)
    assert not [tag for tag, _ in elements if tag in ("img", "iframe", "object", "embed")]
    own = page[: page.index("<script>")] + page[page.rindex("<script>") :]
    assert "http" not in own.lower()


def test_the_page_holds_the_series_as_they_are(page: str, series: ReportSeries) -> None:
    match = re.search(r"const figures = (\{.*?\});\n", page, flags=re.DOTALL)
    assert match is not None
    figures = json.loads(match[1])
    assert set(figures) == {"schedule", "fan", "search", "losses", "spread"}
    lines = {trace["name"]: trace for trace in figures["schedule"]["data"]}
    assert tuple(lines["this run"]["y"]) == series.base.y
    assert tuple(lines["tuned"]["x"]) == series.reference_rates[0].x


def test_a_title_with_markup_in_it_stays_text(page: str) -> None:
    assert "A &lt;run&gt;" in page
    assert "<run>" not in page


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="auto"),
        pytest.param({"controller": Fixed(), "num_replicas": 16}, id="fixed"),
        pytest.param({"controller": Paper(), "max_lr": BEST_RATE}, id="paper"),
        pytest.param({"num_replicas": 1}, id="one-replica"),
        pytest.param({"num_rounds": 1}, id="search-in-progress"),
    ],
)
def test_every_panel_is_a_valid_figure(options: dict[str, Any]) -> None:
    for panel in panels_of(series_of(history_of(**options))):
        plotly.graph_objects.Figure(panel.figure)


def test_the_picture_is_written(searched: History, tmp_path: Path) -> None:
    picture = tmp_path / "deep" / "report.png"
    write_report(searched, page=tmp_path / "report.html", picture=picture, title="a run")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_ledger_without_a_round_has_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="no finished round"):
        write_report(history_of(num_rounds=0), page=tmp_path / "report.html", title="a run")


def test_the_headline_says_what_was_found_and_what_it_cost(searched: History) -> None:
    text = headline(searched)
    assert "found 0.0300" in text
    assert "30 times higher" in text
    assert "in 120 of 900 steps" in text


def verdict(**changes: Any) -> Verdict:
    values: dict[str, Any] = {
        "given_rate": 1e-3,
        "tuned_rate": 3e-2,
        "plain_loss": 3.0,
        "auto_loss": 2.1,
        "tuned_loss": 2.0,
        "found_rate": 2.5e-2,
        "search_steps": 120,
        "total_steps": 1500,
        "candidates": 12,
        "dead": 1,
    }
    return Verdict(**{**values, **changes})


def test_the_verdict_quotes_the_gap_that_was_closed() -> None:
    assert verdict().gap_closed == pytest.approx(0.9)
    text = verdict().paragraph()
    assert "closed 90% of the gap" in text
    assert "5.0% behind the tuned run" in text
    assert "first 120 steps (8% of the run)" in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param({"auto_loss": 3.5}, "did not help", id="worse-than-plain"),
        pytest.param({"auto_loss": None}, "failed here", id="not-finite"),
        pytest.param({"plain_loss": 1.9}, "no gap to close", id="plain-was-best"),
        pytest.param({"found_rate": None}, "too few for a search", id="too-short"),
        pytest.param({"is_suspect": True}, "suspect", id="suspect"),
        pytest.param({"auto_loss": 1.9}, "5.0% ahead of the tuned run", id="ahead"),
        pytest.param({"tuned_loss": None}, "nothing to compare with", id="tuned-not-finite"),
        pytest.param({"plain_loss": None}, "plain one-cycle's loss is not finite", id="plain-not-finite"),
    ],
)
def test_the_verdict_is_honest_when_the_outcome_is_bad(changes: dict[str, Any], words: str) -> None:
    assert words in verdict(**changes).paragraph()
