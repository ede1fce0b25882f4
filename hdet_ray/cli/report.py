"""A run's report: a page that needs nothing but itself, and a picture.

The page carries Plotly's JavaScript inside (it ships with the Python package), so it opens anywhere,
offline and years later, and asks no other host for anything.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from string import Template

import plotly.offline  # type: ignore[import-untyped]  # it carries no types

import hdet_ray
from hdet_ray.cli.charts_plotly import Panel, panels_of
from hdet_ray.cli.replaying import read_ledger_file
from hdet_ray.cli.summary import Fact, facts_of, headline, notes_of
from hdet_ray.core.plan import RATE
from hdet_ray.exceptions import ConfigError, LedgerError
from hdet_ray.view.history import History, Round
from hdet_ray.view.numbers import loss_text, rate_text
from hdet_ray.view.series import Reference, ReportSeries, series_of

_MAX_ROUNDS_LISTED = 300


def write_report(
    history: History,
    *,
    page: Path,
    picture: Path | None = None,
    title: str,
    text: str | None = None,
    references: Sequence[Reference] = (),
    more_facts: Sequence[Fact] = (),
) -> None:
    """Write the page, and the picture where asked for; their folders are made where missing.

    Args:
        history: The run.
        page: The HTML file.
        picture: The PNG file.
        title: What was run.
        text: A paragraph above the charts; the run's headline unless given.
        references: Other runs to draw beside it.
        more_facts: Put in front of what is known from the ledger.

    Raises:
        LedgerError: the ledger holds no round yet.
    """
    if not history.rounds:
        raise LedgerError(
            "the ledger holds no finished round yet, so there is nothing to draw; let the run go on"
        )
    series = series_of(history, references)
    text = text or headline(history)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(_page(history, series, title, text, more_facts), encoding="utf-8")
    if picture is not None:
        from hdet_ray.cli.charts_png import write_png

        picture.parent.mkdir(parents=True, exist_ok=True)
        write_png(series, picture, title=title, subtitle=text)


def report_file(
    ledger: Path, *, page: Path, picture: Path | None, title: str | None, references: Sequence[str]
) -> None:
    """`hdet report`: draw a ledger's file.

    Args:
        ledger: The file.
        page: The HTML file.
        picture: The PNG file, where wanted.
        title: What was run; the ledger's name unless given.
        references: Other runs, as ``name=path``.

    Raises:
        ConfigError: a reference is no ``name=path``, or there is no such file.
        LedgerError: a ledger can't be read, or holds no round.
    """
    others = [_reference(text) for text in references]
    history = History.of(read_ledger_file(ledger))
    write_report(history, page=page, picture=picture, title=title or ledger.stem, references=others)


def report_job(
    job: str, *, page: Path, picture: Path | None, title: str | None, references: Sequence[str]
) -> None:
    """`hdet report JOB`: draw the ledger of a job of the service; arguments as `report_file`.

    Raises:
        LedgerError: it has no finished round yet.
    """
    from hdet_ray.cli.asking import service
    from hdet_ray.cli.service_ledgers import read_job_ledger

    others = [_reference(text) for text in references]
    with service("report") as client:
        found = read_job_ledger(client, job)
    write_report(
        History.of(found.ledger), page=page, picture=picture, title=title or found.name, references=others
    )


def _reference(text: str) -> Reference:
    name, separator, path = text.partition("=")
    if not separator or not Path(path).is_file():
        raise ConfigError(
            f"--reference {text!r} is no NAME=LEDGER with a ledger that exists; "
            "write it like tuned=runs/demo/tuned.jsonl"
        )
    return Reference(label=name, history=History.of(read_ledger_file(Path(path))))


def _page(history: History, series: ReportSeries, title: str, text: str, more_facts: Sequence[Fact]) -> str:
    panels = panels_of(series)
    figures = {panel.name: panel.figure for panel in panels}
    template = Template(resources.files("hdet_ray.cli").joinpath("report.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=html.escape(title),
        text=html.escape(text),
        facts="\n".join(_fact(name, value) for name, value in [*more_facts, *facts_of(history)]),
        notes="\n".join(f"<p class=note>{html.escape(note)}</p>" for note in notes_of(history)),
        panels="\n".join(_panel(panel) for panel in panels),
        rounds="\n".join(_row(done) for done in _listed(history.rounds)),
        version=html.escape(hdet_ray.__version__),
        # A "</script>" inside the data would end the element.
        figures=json.dumps(figures, allow_nan=False).replace("</", "<\\/"),
        plotly=plotly.offline.get_plotlyjs(),
    )


def _fact(name: str, value: str) -> str:
    return f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>"


def _panel(panel: Panel) -> str:
    kind = "panel wide" if panel.is_wide else "panel"
    title, note, name = (html.escape(text) for text in (panel.title, panel.note, panel.name))
    chart = f'<div class=chart id="{name}" role=img aria-label="{title}"></div>'
    return f'<section class="{kind}"><h2>{title}</h2><p>{note}</p>{chart}</section>'


def _listed(rounds: Sequence[Round]) -> Sequence[Round]:
    """All rounds, or evenly chosen ones where they would make the page heavy."""
    stride = math.ceil(len(rounds) / _MAX_ROUNDS_LISTED)
    return rounds[::stride]


def _row(done: Round) -> str:
    plan = done.plan
    live = [
        r.loss for i, r in enumerate(done.report.replicas) if not done.is_dead(i) and math.isfinite(r.loss)
    ]
    dead = ", ".join(str(r) for r in range(plan.num_replicas) if done.is_dead(r))
    cells = [
        str(plan.round),
        plan.phase,
        f"{plan.step}–{done.end_step}",
        rate_text(plan.peak.get((RATE, 0)) if plan.is_search else plan.base.get((RATE, 0))),
        loss_text(min(live)) if live else "–",
        loss_text(max(live)) if live else "–",
        dead,
    ]
    return "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"
