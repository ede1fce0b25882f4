"""Writes the dashboards as Grafana's JSON: ``python -m deploy.grafana.build``.

Each can be imported by hand (Grafana asks for the data source, ``__inputs``) or provisioned from a
file: panels name the data source by a variable, whose value Grafana picks itself where it is not asked.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import prometheus, stat, statetimeline, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common, dashboard

from deploy.grafana.fleet import FLEET
from deploy.grafana.panels import Board, Event, Panel, Query
from deploy.grafana.run import RUN
from deploy.grafana.selectors import EVENT_STEP

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = (ROOT / "deploy/grafana/dashboards", ROOT / "helm/hdet-ray/files/dashboards")
BOARDS = {"fleet": FLEET, "run": RUN}

INPUT = "DS_PROMETHEUS"
SOURCE = dashboard.DataSourceRef(type_val="prometheus", uid="${datasource}")
GRAFANA = "11.6.0"
"""The oldest release that these are made for; newer ones migrate them when they load them."""

_OF_INTERVALS = ("auto", "auto_count", "auto_min")
"""Settings of interval variables, which the SDK gives to all."""


def dashboard_json(board: Board) -> dict[str, Any]:
    """A board as Grafana's JSON."""
    made = (
        builders.Dashboard(board.title)
        .uid(board.uid)
        .description(board.description)
        .tags(["hdet"])
        .time(board.window, "now")
        .refresh("30s")
        .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
        .timezone("browser")
        .link(_link_to_others())
    )
    for variable in _variables(board):
        made = made.with_variable(variable)
    for event in board.events:
        made = made.annotation(_annotation(event))
    for row in board.rows:
        made = made.with_row(builders.Row(row.title))
        for panel in row.panels:
            made = made.with_panel(_BUILDERS[panel.kind](panel))
    data: dict[str, Any] = json.loads(json.dumps(made.build(), cls=JSONEncoder))
    for annotation, event in zip(data["annotations"]["list"], board.events, strict=True):
        # The data source's own fields, which the SDK doesn't know.
        annotation |= {"step": EVENT_STEP, "titleFormat": event.title, "textFormat": event.name}
    for variable in data["templating"]["list"]:
        for setting in _OF_INTERVALS:
            variable.pop(setting, None)
    for number, panel in enumerate(data["panels"], start=1):
        panel["id"] = number
    return {**_import_header(), **data}


def dashboard_text(board: Board) -> str:
    """A board as the file that is committed."""
    return json.dumps(dashboard_json(board), indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of the command line."""
    parser = argparse.ArgumentParser(prog="python -m deploy.grafana.build", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, help="folder to write to; the shipped ones if left out")
    chosen = parser.parse_args(arguments)
    for folder in SHIPPED if chosen.output is None else (chosen.output,):
        folder.mkdir(parents=True, exist_ok=True)
        for name, board in BOARDS.items():
            (folder / f"{name}.json").write_text(dashboard_text(board), encoding="utf-8")


def _import_header() -> dict[str, Any]:
    return {
        "__inputs": [
            {
                "name": INPUT,
                "label": "Prometheus",
                "description": "The Prometheus that scrapes the HDET controller",
                "type": "datasource",
                "pluginId": "prometheus",
                "pluginName": "Prometheus",
            }
        ],
        "__requires": [
            {"type": "grafana", "id": "grafana", "name": "Grafana", "version": GRAFANA},
            {"type": "datasource", "id": "prometheus", "name": "Prometheus", "version": "1.0.0"},
            {"type": "panel", "id": "timeseries", "name": "Time series", "version": ""},
            {"type": "panel", "id": "stat", "name": "Stat", "version": ""},
            {"type": "panel", "id": "state-timeline", "name": "State timeline", "version": ""},
        ],
    }


def _link_to_others() -> builders.DashboardLink:
    return (
        builders.DashboardLink("HDET")
        .type(dashboard.DashboardLinkType.DASHBOARDS)
        .tags(["hdet"])
        .include_vars(True)
        .keep_time(True)
    )


def _variables(board: Board) -> list[Any]:
    chosen = f"${{{INPUT}}}"
    variables: list[Any] = [
        builders.DatasourceVariable("datasource")
        .label("Data source")
        .type("prometheus")
        .current(dashboard.VariableOption(text=chosen, value=chosen)),
        builders.QueryVariable("namespace")
        .label("Namespace")
        .datasource(SOURCE)
        .query("label_values(hdet_build_info, namespace)")
        .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(dashboard.VariableSort.ALPHABETICAL_ASC)
        .include_all(True)
        # Also matches series without the label: those of a Prometheus outside Kubernetes.
        .all_value(".*")
        .current(dashboard.VariableOption(text="All", value="$__all")),
    ]
    if board.has_run:
        variables.append(
            builders.QueryVariable("run")
            .label("Run")
            .description("Id of the job, newest first")
            .datasource(SOURCE)
            .query('label_values(hdet_round{namespace=~"$namespace"}, run)')
            .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(dashboard.VariableSort.ALPHABETICAL_DESC)
        )
    return variables


def _annotation(event: Event) -> builders.AnnotationQuery:
    return (
        builders.AnnotationQuery()
        .name(event.name)
        .datasource(SOURCE)
        .enable(True)
        .icon_color(event.color)
        .expr(event.expr)
    )


def _target(query: Query, position: int) -> prometheus.Dataquery:
    return (
        prometheus.Dataquery()
        .expr(query.expr)
        .legend_format(query.legend)
        .ref_id(chr(ord("A") + position))
        .datasource(SOURCE)
        .range()
    )


def _dressed(builder: Any, panel: Panel) -> Any:
    builder = (
        builder.title(panel.title)
        .description(panel.description)
        .datasource(SOURCE)
        .unit(panel.unit)
        .span(panel.width)
        .height(panel.height)
        .targets([_target(query, position) for position, query in enumerate(panel.queries)])
    )
    return builder if panel.decimals is None else builder.decimals(panel.decimals)


def _lines(panel: Panel) -> timeseries.Panel:
    builder: timeseries.Panel = _dressed(timeseries.Panel(), panel)
    builder = (
        builder.line_width(1)
        .show_points(common.VisibilityMode.NEVER)
        .legend(
            common_builders.VizLegendOptions()
            .display_mode(common.LegendDisplayMode.LIST)
            .placement(common.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(
            common_builders.VizTooltipOptions()
            .mode(common.TooltipDisplayMode.MULTI)
            .sort(common.SortOrder.DESCENDING)
        )
    )
    if panel.is_from_zero:
        builder = builder.min(0)
    if panel.is_logarithmic:
        builder = builder.scale_distribution(
            common_builders.ScaleDistributionConfig().type(common.ScaleDistribution.LOG).log(10)
        )
    for position, query in enumerate(panel.queries):
        if query.is_thick:
            thick = dashboard.DynamicConfigValue(id_val="custom.lineWidth", value=3)
            builder = builder.override_by_query(chr(ord("A") + position), [thick])
    return builder


def _stack(panel: Panel) -> timeseries.Panel:
    return (
        _lines(panel)
        .fill_opacity(40)
        .stacking(common_builders.StackingConfig().mode(common.StackingMode.NORMAL).group("A"))
    )


def _stat(panel: Panel) -> stat.Panel:
    builder: stat.Panel = _dressed(stat.Panel(), panel)
    names_lines = common.BigValueTextMode.VALUE_AND_NAME if "{{" in panel.queries[0].legend else None
    return (
        builder.graph_mode(common.BigValueGraphMode.NONE)
        .color_mode(common.BigValueColorMode.VALUE)
        .text_mode(names_lines or common.BigValueTextMode.VALUE)
        .reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
        .thresholds(
            builders.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(_thresholds(panel))
        )
    )


def _thresholds(panel: Panel) -> list[dashboard.Threshold]:
    if panel.warns_below is not None:
        return [
            dashboard.Threshold(value=None, color="orange"),
            dashboard.Threshold(value=panel.warns_below, color="green"),
        ]
    normal = [dashboard.Threshold(value=None, color="green" if panel.warns_above else "text")]
    if panel.warns_above is None:
        return normal
    return [*normal, dashboard.Threshold(value=panel.warns_above, color="orange")]


def _states(panel: Panel) -> statetimeline.Panel:
    builder: statetimeline.Panel = _dressed(statetimeline.Panel(), panel)
    return builder.show_value(common.VisibilityMode.NEVER).row_height(0.8).fill_opacity(70)


_BUILDERS: dict[str, Callable[[Panel], Any]] = {
    "lines": _lines,
    "stack": _stack,
    "stat": _stat,
    "states": _states,
}

if __name__ == "__main__":
    main()
