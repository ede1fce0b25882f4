"""The table of `docs/metrics.md`, from the catalogue.

Run it after a change: ``python -m hdet_service.metrics.page docs/metrics.md``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from hdet_service.metrics.catalogue import METRICS, Metric

BEGIN = "<!-- table: made by `python -m hdet_service.metrics.page docs/metrics.md` -->"
END = "<!-- end of table -->"


def table() -> str:
    """All metrics as a table in Markdown."""
    rows = ["| metric | type | labels | says | there |", "|---|---|---|---|---|"]
    return "\n".join([*rows, *(_row(metric) for metric in METRICS)])


def with_table(page: str) -> str:
    """The page with its table as it should be."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


def _row(metric: Metric) -> str:
    names = [f"`{label}`" for label in metric.labels]
    if metric.values:
        names[-1] += f" ({', '.join(metric.values)})"
    cells = [f"`{metric.name}`", metric.kind, ", ".join(names) or "–", metric.help, metric.when]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(with_table(path.read_text(encoding="utf-8")), encoding="utf-8")
