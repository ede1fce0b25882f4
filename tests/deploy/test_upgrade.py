"""An upgrade keeps names, claims and everything that Kubernetes would refuse to change."""

from __future__ import annotations

import copy
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.rendering import CHART, GOLDEN, of_kind, parse, render
from tests.deploy.upgrades import obstacles

pytestmark = pytest.mark.deploy

RELEASED = sorted(GOLDEN.glob("*/*-values.yaml"))
EVERY_RELEASE = pytest.mark.parametrize(
    "values", RELEASED, ids=lambda path: f"{path.parent.name}-{path.stem}"
)


def manifest_of(values: Path) -> list[dict[str, Any]]:
    """What the release rendered from these values when it was made."""
    name = values.name.replace("-values", "-manifest")
    return parse(values.with_name(name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def next_chart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This chart as the next release: the version is all that differs."""
    chart = tmp_path_factory.mktemp("next") / CHART.name
    shutil.copytree(CHART, chart)
    text = (chart / "Chart.yaml").read_text(encoding="utf-8")
    text = re.sub(r"(?m)^(version|appVersion): .*$", r"\1: 99.0.0", text)
    (chart / "Chart.yaml").write_text(text, encoding="utf-8")
    return chart


@EVERY_RELEASE
def test_an_upgrade_from_a_release_changes_nothing_that_may_not_change(
    values: Path, next_chart: Path
) -> None:
    before, after = manifest_of(values), render(values, chart=next_chart)
    assert obstacles(before, after) == []
    versions = {item["metadata"]["labels"]["helm.sh/chart"] for item in after}
    assert versions == {"hdet-ray-99.0.0"}


def test_the_release_covers_every_object_that_an_upgrade_could_lose() -> None:
    kinds = {item["kind"] for values in RELEASED for item in manifest_of(values)}
    assert {"RayCluster", "PersistentVolumeClaim", "PriorityClass", "Service", "ServiceAccount"} <= kinds


def _changed(kind: str, *path: str | int, value: Any) -> list[dict[str, Any]]:
    [values] = [path for path in RELEASED if path.name == "spot-values.yaml"]
    objects = copy.deepcopy(manifest_of(values))
    inside: Any = of_kind(objects, kind)[0]
    for step in path[:-1]:
        inside = inside[step]
    inside[path[-1]] = value
    return objects


CLUSTER = ("spec", "headGroupSpec", "template", "spec", "volumes", 0, "persistentVolumeClaim", "claimName")


@pytest.mark.parametrize(
    ("after", "named"),
    [
        (_changed("PersistentVolumeClaim", "metadata", "name", value="other"), "is gone"),
        (_changed("PersistentVolumeClaim", "spec", "accessModes", value=["ReadWriteMany"]), "accessModes"),
        (_changed("PersistentVolumeClaim", "spec", "storageClassName", value="fast"), "storageClassName"),
        (_changed("PersistentVolumeClaim", "metadata", "annotations", value={}), "resource-policy"),
        (_changed("PriorityClass", "value", value=7), "value was"),
        (_changed("Service", "spec", "selector", value={"a": "b"}), "spec/selector"),
        (_changed("RayCluster", "spec", "workerGroupSpecs", value=[]), "worker groups ['workers'] are gone"),
        (_changed("RayCluster", *CLUSTER, value="other"), "the head's claims"),
        (_changed("RayCluster", "metadata", "name", value="other"), "is gone"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_may_not_change_is_seen_when_it_does(after: list[dict[str, Any]], named: str) -> None:
    [values] = [path for path in RELEASED if path.name == "spot-values.yaml"]
    assert any(named in text for text in obstacles(manifest_of(values), after))


def test_an_upgrade_may_grow_a_claim_and_move_to_another_image() -> None:
    after = _changed("PersistentVolumeClaim", "spec", "resources", value={"requests": {"storage": "40Gi"}})
    [values] = [path for path in RELEASED if path.name == "spot-values.yaml"]
    assert obstacles(manifest_of(values), after) == []
