"""What the chart renders is valid, the same each time, and holds together."""

from __future__ import annotations

import copy
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import Phase, given, settings

from deploy.tools.pins import KUBERNETES_MINORS
from hdet_service.settings import Settings
from tests.deploy.object_schemas import problems
from tests.deploy.rendering import (
    BIN,
    CHART,
    CI_VALUES,
    of_kind,
    only,
    parse,
    quiet_environment,
    render,
    render_text,
)
from tests.deploy.value_sets import value_sets

pytestmark = pytest.mark.deploy

EVERY_FILE = pytest.mark.parametrize("file", CI_VALUES, ids=lambda file: file.stem)


@EVERY_FILE
@pytest.mark.parametrize("minor", KUBERNETES_MINORS)
def test_every_shipped_set_of_values_is_valid_on_the_three_newest_kubernetes(file: Path, minor: str) -> None:
    found = {f"{item['kind']}: {text}" for item in render(file) for text in problems(item, minor)}
    assert found == set()


@EVERY_FILE
def test_helm_lints_every_shipped_set_of_values(file: Path) -> None:
    command = [str(BIN / "helm"), "lint", "--strict", str(CHART), "-f", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=quiet_environment())
    assert done.returncode == 0, done.stdout + done.stderr


# Each example takes two renderings: a failing one is told as it was drawn, not looked into for minutes.
@settings(max_examples=100, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(values=value_sets())
def test_values_drawn_from_the_schema_render_to_valid_objects_twice_the_same(values: dict[str, Any]) -> None:
    first = render_text(values)
    assert render_text(values) == first
    objects = parse(first)
    minors = KUBERNETES_MINORS
    assert [p for minor in minors for item in objects for p in problems(item, minor)] == []
    assert list(dangling(objects, values)) == []


@EVERY_FILE
def test_what_a_pod_mounts_or_runs_as_is_there(file: Path) -> None:
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert list(dangling(render(file), values)) == []


def _mutated(kind: str, *path: str | int, value: Any) -> dict[str, Any]:
    item = copy.deepcopy(only(render(CHART / "ci/gpu-values.yaml"), kind))
    inside: Any = item
    for step in path[:-1]:
        inside = inside[step]
    inside[path[-1]] = value
    return item


HEAD = ("spec", "headGroupSpec", "template", "spec")
WORKER = ("spec", "workerGroupSpecs", 0, "template", "spec", "containers", 0)


@pytest.mark.parametrize(
    ("item", "named"),
    [
        (_mutated("Service", "spec", "portz", value=[]), "portz"),
        (_mutated("RayCluster", "spec", "rayVerson", value="2.60.0"), "rayVerson"),
        (_mutated("RayCluster", "spec", "workerGroupSpecs", 0, "minReplicas", value="one"), "minReplicas"),
        (_mutated("RayCluster", *HEAD, "containerz", value=[]), "containerz"),
        (_mutated("RayCluster", *WORKER, "imagePullPolice", value="Always"), "imagePullPolice"),
        (_mutated("RayCluster", *WORKER, "resources", "limits", "cpu", value="lots"), "limits/cpu"),
        (_mutated("RayCluster", *WORKER, "resources", "limits", "memory", value="8GiB"), "limits/memory"),
        (_mutated("RayCluster", "metadata", "name", value="Run"), "metadata/name"),
        (_mutated("RayCluster", "metadata", "labels", "team", value="a b"), "labels/team"),
        (_mutated("NetworkPolicy", "spec", "ingress", 1, "ports", 0, "port", value=[]), "ports/0/port"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_schemas_see_a_wrong_field(item: dict[str, Any], named: str) -> None:
    assert any(named in text for text in problems(item, KUBERNETES_MINORS[-1]))


def test_kubernetes_own_decoder_reads_every_pod_and_its_quantities(tmp_path: Path) -> None:
    file = tmp_path / "pods.json"
    for values in CI_VALUES:
        [*pods] = pods_of(render(values))
        file.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": pods}), encoding="utf-8")
        done = _decode(file)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.split()) == len(pods)
    pods[0]["spec"]["containers"][0]["resources"]["limits"]["cpu"] = "lots"
    file.write_text(json.dumps(pods[0]), encoding="utf-8")
    assert "quantities must match" in _decode(file).stderr


def _decode(file: Path) -> subprocess.CompletedProcess[str]:
    # `--local` asks no server: kubectl reads the objects by Kubernetes' own Go types.
    command = [str(BIN / "kubectl"), "set", "env", "--local", "-f", str(file), "CHECKED=1", "-o", "name"]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=quiet_environment())


def test_the_minimal_values_need_only_kubernetes_and_kuberay() -> None:
    groups = {item["apiVersion"].rpartition("/")[0] for item in render(CHART / "ci/minimal-values.yaml")}
    assert groups == {"", "networking.k8s.io", "policy", "ray.io"}
    for file in CHART.glob("templates/**/*.*"):
        for action in re.findall(r"{{.*?}}", file.read_text(encoding="utf-8"), re.DOTALL):
            assert not re.search(r"\.Capabilities|\b(lookup|now|rand[A-Z]\w+|gen[A-Z]\w+|uuidv4)\b", action)


@EVERY_FILE
def test_no_container_may_write_to_its_image_or_become_root(file: Path) -> None:
    for pod in pods_of(render(file)):
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        for container in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}


@EVERY_FILE
def test_no_container_but_the_autoscaler_finds_a_token_of_kubernetes(file: Path) -> None:
    for pod in pods_of(render(file)):
        assert pod["spec"]["automountServiceAccountToken"] is False
        for container in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]:
            assert "kubernetes-api" not in {mount["name"] for mount in container.get("volumeMounts", [])}


@EVERY_FILE
def test_the_supervisor_sees_rays_processes_and_the_autoscaler_is_another_user(file: Path) -> None:
    cluster = only(render(file), "RayCluster")["spec"]
    pod = cluster["headGroupSpec"]["template"]["spec"]
    assert pod["shareProcessNamespace"] is True
    if cluster["enableInTreeAutoscaling"]:
        # Else /proc would lead a driver to the token in the autoscaler's container.
        user = cluster["autoscalerOptions"]["securityContext"]["runAsUser"]
        assert user != pod["securityContext"]["runAsUser"]


@EVERY_FILE
def test_only_the_head_sees_the_controllers_state_and_tokens(file: Path) -> None:
    for pod in pods_of(render(file)):
        names = {volume["name"] for volume in pod["spec"].get("volumes", [])}
        assert ("state" in names) == (pod["metadata"]["labels"].get("app.kubernetes.io/component") == "head")
        assert "tokens" not in names or "state" in names


def test_a_service_called_hdet_does_not_pass_for_a_setting() -> None:
    pods = pods_of(render({"fullnameOverride": "hdet"}))
    assert [pod["spec"]["enableServiceLinks"] for pod in pods] == [False] * len(pods)


def test_the_controllers_port_is_the_same_everywhere() -> None:
    objects = render({"controller": {"port": 9000}, "service": {"port": 80}})
    head = only(objects, "RayCluster")["spec"]["headGroupSpec"]["template"]["spec"]
    [supervisor] = head["initContainers"]
    assert {"name": "HDET_PORT", "value": "9000"} in supervisor["env"]
    assert supervisor["readinessProbe"]["httpGet"]["port"] == 9000
    assert {"name": "hdet", "containerPort": 9000} in head["containers"][0]["ports"]
    assert only(objects, "Service")["spec"]["ports"][0]["targetPort"] == 9000
    assert only(objects, "NetworkPolicy")["spec"]["ingress"][1]["ports"][0]["port"] == 9000


@EVERY_FILE
def test_the_service_takes_the_settings_that_the_chart_gives(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = only(render(file), "RayCluster")["spec"]["headGroupSpec"]["template"]["spec"]
    given = {entry["name"]: entry["value"] for entry in head["initContainers"][0]["env"] if "value" in entry}
    ours = {name: value for name, value in given.items() if name.startswith("HDET_")}
    for name, value in ours.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert {name.removeprefix("HDET_").lower() for name in ours} <= settings.model_fields_set
    assert settings.storage in ("/checkpoints/runs", "s3://example-bucket/hdet")


def test_with_autoscaling_the_chart_leaves_the_number_of_workers_alone() -> None:
    scaled = only(render({}), "RayCluster")["spec"]["workerGroupSpecs"][0]
    values = {"autoscaling": {"enabled": False}, "workers": {"min": 3, "max": 3}}
    fixed = only(render(values), "RayCluster")["spec"]["workerGroupSpecs"][0]
    assert "replicas" not in scaled
    assert (fixed["replicas"], fixed["minReplicas"], fixed["maxReplicas"]) == (3, 3, 3)


def test_a_further_group_takes_what_it_leaves_out_from_workers() -> None:
    values = {
        "workers": {"cpu": "8", "nodeSelector": {"pool": "a"}, "env": [{"name": "A", "value": "1"}]},
        "extraWorkerGroups": [{"name": "other", "min": 0, "max": 3, "nodeSelector": {"pool": "b"}}],
    }
    first, second = only(render(values), "RayCluster")["spec"]["workerGroupSpecs"]
    pods = [group["template"]["spec"] for group in (first, second)]
    assert (first["groupName"], first["minReplicas"], first["maxReplicas"]) == ("workers", 1, 4)
    assert (second["groupName"], second["minReplicas"], second["maxReplicas"]) == ("other", 0, 3)
    assert [pod["containers"][0]["resources"]["limits"]["cpu"] for pod in pods] == ["8", "8"]
    assert [pod["containers"][0]["env"] for pod in pods] == [[{"name": "A", "value": "1"}]] * 2
    assert [pod["nodeSelector"] for pod in pods] == [{"pool": "a"}, {"pool": "b"}]


def test_the_rules_reach_prometheus_as_they_are_written() -> None:
    objects = render({"metrics": {"prometheusRule": {"enabled": True}, "rulesConfigMap": {"enabled": True}}})
    written = yaml.safe_load((CHART / "files/rules.yaml").read_text(encoding="utf-8"))
    assert only(objects, "PrometheusRule")["spec"] == written
    [data] = [item["data"]["hdet-rules.yaml"] for item in of_kind(objects, "ConfigMap")]
    assert yaml.safe_load(data) == written


def test_every_dashboard_is_found_by_grafanas_sidecar() -> None:
    objects = of_kind(render({"metrics": {"dashboards": {"enabled": True}}}), "ConfigMap")
    files = sorted((CHART / "files/dashboards").glob("*.json"))
    assert len(files) >= 2
    assert all(item["metadata"]["labels"]["grafana_dashboard"] == "1" for item in objects)
    packed = {name: text for item in objects for name, text in item["data"].items()}
    assert {name: json.loads(text) for name, text in packed.items()} == {
        file.name: json.loads(file.read_text(encoding="utf-8")) for file in files
    }


def pods_of(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every pod of a manifest, those that KubeRay will make included."""
    pods = [copy.deepcopy(pod) for pod in of_kind(objects, "Pod")]
    for cluster in of_kind(objects, "RayCluster"):
        groups = [("head", cluster["spec"]["headGroupSpec"])]
        groups += [(group["groupName"], group) for group in cluster["spec"]["workerGroupSpecs"]]
        for name, group in groups:
            template = copy.deepcopy(group["template"])
            template["metadata"]["name"] = name
            pods.append({"apiVersion": "v1", "kind": "Pod", **template})
    return pods


def dangling(objects: list[dict[str, Any]], values: dict[str, Any]) -> Any:
    """What a pod names and neither the manifest holds nor the values bring along."""
    claims = {item["metadata"]["name"] for item in of_kind(objects, "PersistentVolumeClaim")}
    claims |= {values.get(part, {}).get("existingClaim") for part in ("state", "checkpoints")}
    accounts = {item["metadata"]["name"] for item in of_kind(objects, "ServiceAccount")}
    if not values.get("serviceAccount", {}).get("create", True):
        accounts |= {values["serviceAccount"]["headName"], values["serviceAccount"]["workerName"]}
    for pod in pods_of(objects):
        spec = pod["spec"]
        volumes = {volume["name"] for volume in spec.get("volumes", [])}
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            for mount in container.get("volumeMounts", []):
                if mount["name"] not in volumes:
                    yield f"{container['name']} mounts {mount['name']}"
        for volume in spec.get("volumes", []):
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            if claim is not None and claim not in claims:
                yield f"claim {claim}"
        if "serviceAccountName" in spec and spec["serviceAccountName"] not in accounts:
            yield f"account {spec['serviceAccountName']}"
