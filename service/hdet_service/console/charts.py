"""Which charts a run has."""

from __future__ import annotations

from hdet_service.console import loss_charts, rate_charts, search_chart
from hdet_service.console.record import RunRecord
from hdet_service.console.svg import Chart


def charts_of(record: RunRecord) -> list[Chart]:
    """The charts of a run, the most important first; none before its first round has ended."""
    if not record.rounds:
        return []
    charts = [
        rate_charts.whole_run(record),
        search_chart.search(record.state),
        rate_charts.candidates(record),
        rate_charts.around_the_base(record),
        loss_charts.losses(record),
        loss_charts.spread(record),
        loss_charts.divergence(record),
    ]
    return [chart for chart in charts if chart is not None]
