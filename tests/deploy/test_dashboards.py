"""Dashboards: Grafana takes them, they don't drift, and every panel says what it shows and what to do."""

from __future__ import annotations

import copy
import json
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from grafana_foundation_sdk.models import units

from deploy.grafana.build import BOARDS, INPUT, SHIPPED, dashboard_text
from deploy.grafana.panels import Panel, Query
from deploy.grafana.source import expand, variables_for
from tests.deploy.observed import ROOT, dashboard, expressions, panels, tool

SCHEMA = ROOT / "deploy/grafana/schema/dashboard-13.2.3.json"
UNITS = {value for name, value in vars(units).items() if name[0].isupper()}
OF_PROMETHEUS = {"expr", "step", "titleFormat", "textFormat"}
"""An annotation's fields that belong to its data source, and stand in no schema of Grafana's."""

each_board = pytest.mark.parametrize("name", list(BOARDS))
each_panel = pytest.mark.parametrize(
    ("name", "panel"),
    [(name, panel) for name in BOARDS for panel in panels(dashboard(name))],
    ids=lambda value: value if isinstance(value, str) else value["title"],
)


@each_board
@pytest.mark.parametrize("folder", SHIPPED, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_committed_json_is_what_the_code_makes(name: str, folder: Path) -> None:
    committed = (folder / f"{name}.json").read_text(encoding="utf-8")
    assert committed == dashboard_text(BOARDS[name]), "run `python -m deploy.grafana.build`"


@each_board
def test_a_dashboard_follows_grafanas_own_schema(name: str) -> None:
    errors = list(_validator().iter_errors(_as_stored(dashboard(name))))
    assert not errors, [(list(error.absolute_path), error.message) for error in errors]


def test_the_schema_refuses_a_misspelt_key() -> None:
    board = _as_stored(dashboard("run"))
    board["panels"][1]["fieldConfigs"] = board["panels"][1].pop("fieldConfig")
    assert not _validator().is_valid(board)


@each_board
def test_a_dashboard_can_be_imported_by_hand(name: str) -> None:
    board = dashboard(name)
    asked = {one["name"]: one for one in board["__inputs"]}
    assert asked[INPUT]["type"] == "datasource"
    assert asked[INPUT]["pluginId"] == "prometheus"
    source = next(one for one in board["templating"]["list"] if one["type"] == "datasource")
    assert source["name"] == "datasource"
    assert source["current"]["value"] == f"${{{INPUT}}}"


@each_board
def test_every_data_source_is_the_variable(name: str) -> None:
    named = list(_found(dashboard(name), "datasource"))
    assert named
    assert all(one == {"type": "prometheus", "uid": "${datasource}"} for one in named)


def test_the_variables_are_data_source_namespace_and_run() -> None:
    variables = {name: [one["name"] for one in dashboard(name)["templating"]["list"]] for name in BOARDS}
    assert variables == {"fleet": ["datasource", "namespace"], "run": ["datasource", "namespace", "run"]}


@each_panel
def test_a_panel_has_a_unit_and_says_what_to_do(name: str, panel: dict[str, Any]) -> None:
    assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
    shows, _, remedy = panel["description"].partition("**When it looks bad:**")
    assert len(shows.split()) >= 3
    assert len(remedy.split()) >= 3


@each_panel
def test_a_panels_queries_are_told_apart(name: str, panel: dict[str, Any]) -> None:
    names = [target["refId"] for target in panel["targets"]]
    assert names == sorted(set(names))
    assert all(target["legendFormat"] for target in panel["targets"])


@each_board
def test_panels_have_ids_of_their_own_and_do_not_overlap(name: str) -> None:
    board = dashboard(name)
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + dx, place["y"] + dy) for dx in range(place["w"]) for dy in range(place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_overrides_and_resizes_are_marked_on_every_panel_of_a_run() -> None:
    marks = {one["name"]: one["expr"] for one in dashboard("run")["annotations"]["list"]}
    assert "hdet_schedule_overrides_total" in marks["Overrides"]
    assert "hdet_resizes_total" in marks["Resizes"]


@pytest.mark.deploy
def test_prometheus_reads_every_expression(tmp_path: Path) -> None:
    variables = variables_for("01J", scrape_interval_s=15.0)
    asked = [
        expand(expr, variables) for where, expr in expressions() if not where.startswith(("rule", "variable"))
    ]
    recorded = [{"record": f"query_{number}", "expr": expr} for number, expr in enumerate(asked)]
    (tmp_path / "queries.yaml").write_text(
        yaml.safe_dump({"groups": [{"name": "queries", "rules": recorded}]}), encoding="utf-8"
    )
    done = subprocess.run(
        [tool("promtool"), "check", "rules", str(tmp_path / "queries.yaml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_variable_without_a_value_is_named() -> None:
    with pytest.raises(ValueError, match=r"\$run in .* has no value"):
        expand('hdet_round{run="$run"}', {"namespace": ".*"})


@pytest.mark.parametrize("missing", ["unit", "shows", "remedy"])
def test_a_panel_that_leaves_its_reader_alone_is_refused(missing: str) -> None:
    told = {"unit": "s", "shows": "Something.", "remedy": "Do something."} | {missing: " "}
    with pytest.raises(ValueError, match=f"has no {missing}"):
        Panel(title="x", queries=(Query(expr="up", legend="up"),), **told)


def _validator() -> jsonschema.Draft7Validator:
    return jsonschema.Draft7Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))


def _as_stored(board: dict[str, Any]) -> dict[str, Any]:
    """What Grafana keeps: without what an import reads, and what belongs to the data source alone."""
    kept = copy.deepcopy({key: value for key, value in board.items() if not key.startswith("__")})
    for event in kept["annotations"]["list"]:
        assert event.keys() >= OF_PROMETHEUS
        for key in OF_PROMETHEUS:
            del event[key]
    return kept


def _found(data: Any, key: str) -> list[Any]:
    if isinstance(data, dict):
        here = [data[key]] if isinstance(data.get(key), dict) else []
        return here + [found for value in data.values() for found in _found(value, key)]
    return [found for value in data for found in _found(value, key)] if isinstance(data, list) else []
