"""Rules: what is shipped is what the data says, Prometheus takes it, and each alert was seen both ways."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from deploy.prometheus.alerts import alerting_rules
from deploy.prometheus.rules import SHIPPED, main, rules_yaml
from deploy.prometheus.time_scale import TimeScale
from tests.deploy.observed import ROOT, rules, tool

UNIT_TESTS = sorted((ROOT / "deploy/prometheus").glob("*_test.yaml"))
ALERTS = [rule.alert for rule in alerting_rules(TimeScale())]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_shipped_rules_are_those_of_the_data(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == rules_yaml(TimeScale()), (
        "run `python -m deploy.prometheus.rules`"
    )


@pytest.mark.deploy
@pytest.mark.parametrize("factor", [1.0, 1 / 60, 0.001])
def test_prometheus_takes_the_rules_at_every_time_scale(factor: float, tmp_path: Path) -> None:
    main(["--time-scale", str(factor), "-o", str(tmp_path / "rules.yaml")])
    done = subprocess.run(
        [tool("promtool"), "check", "rules", "--lint-fatal", str(tmp_path / "rules.yaml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.deploy
@pytest.mark.parametrize("path", UNIT_TESTS, ids=lambda path: path.name)
def test_alerts_fire_when_they_should_and_only_then(path: Path) -> None:
    done = subprocess.run(
        [tool("promtool"), "test", "rules", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("alert", ALERTS)
def test_each_alert_is_seen_firing_and_silent(alert: str) -> None:
    seen = [
        bool(case["exp_alerts"])
        for path in UNIT_TESTS
        for test in yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]
        for case in test["alert_rule_test"]
        if case["alertname"] == alert
    ]
    assert set(seen) == {True, False}


@pytest.mark.parametrize("alert", ALERTS)
def test_each_alert_has_its_section_in_the_operations_page(alert: str) -> None:
    shipped = next(rule for rule in rules() if rule.get("alert") == alert)
    page, anchor = shipped["annotations"]["runbook_url"].split("#")
    headings = re.findall(r"^#+\s+(.*)$", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE)
    anchors = [re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings]
    assert anchor in anchors


def test_a_smaller_time_scale_shortens_every_wait_and_threshold() -> None:
    shrunk = yaml.safe_load(rules_yaml(TimeScale(1 / 60)))["groups"][0]["rules"]
    by_name = {rule["alert"]: rule for rule in shrunk if "alert" in rule}
    assert by_name["HDETReplicasBelowDesired"]["for"] == "10s"
    assert (
        "clamp_min(5 * max by (namespace, run) (hdet_round_expected_seconds), 10)"
        in (by_name["HDETSyncStalled"]["expr"])
    )
    assert "[15s]" in by_name["HDETReplicaUnhealthy"]["expr"]


@pytest.mark.parametrize("factor", [0.0, -1.0, 1.5, float("nan"), float("inf")])
def test_a_time_scale_that_makes_no_sense_is_refused(factor: float) -> None:
    with pytest.raises(ValueError, match="must be above 0 and at most 1"):
        TimeScale(factor)


def test_the_shipped_rules_can_not_be_overwritten_by_shrunk_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--time-scale", "0.1"])
    assert "say where with -o" in capsys.readouterr().err


@pytest.mark.deploy
def test_the_scrape_configuration_of_compose_is_taken_by_prometheus(tmp_path: Path) -> None:
    text = (ROOT / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8")
    (tmp_path / "token").write_text("secret", encoding="utf-8")
    (tmp_path / "rules.yaml").write_text(rules_yaml(TimeScale()), encoding="utf-8")
    moved = text.replace("/etc/prometheus/rules.yaml", str(tmp_path / "rules.yaml"))
    moved = moved.replace("/run/secrets/hdet_metrics_token", str(tmp_path / "token"))
    assert moved.count(str(tmp_path)) == 2
    (tmp_path / "prometheus.yml").write_text(moved, encoding="utf-8")
    done = subprocess.run(
        [tool("promtool"), "check", "config", str(tmp_path / "prometheus.yml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
