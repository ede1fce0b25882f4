"""Draws values that the chart's schema allows and that do not contradict each other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from tests.deploy.rendering import CHART

SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))

# Whole pods' worth of grammar that the schema leaves to Kubernetes.
_AFFINITIES = (
    {},
    {
        "podAntiAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {"weight": 1, "podAffinityTerm": {"topologyKey": "kubernetes.io/hostname"}}
            ]
        }
    },
)
_TEXT = st.text(st.characters(categories=["L", "N", "P", "S", "Zs"], include_characters="\n"), max_size=20)
_ASCII = st.characters(codec="ascii", categories=["L", "N", "P", "S"])
_RESERVED_PORTS = frozenset({6379, 8265, 8080, 10001, 52365})


def value_sets() -> st.SearchStrategy[dict[str, Any]]:
    """Values that must render."""
    return _drawn(SCHEMA).map(consistent)


def _drawn(schema: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    """Anything that one schema allows; of its keywords, those that the chart's uses."""
    if "$ref" in schema:
        name = schema["$ref"].removeprefix("#/$defs/")
        return st.sampled_from(_AFFINITIES) if name == "affinity" else _drawn(SCHEMA["$defs"][name])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return st.one_of([_drawn_of_type(name, schema) for name in types])


def _drawn_of_type(name: str, schema: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    match name:
        case "boolean":
            return st.booleans()
        case "integer":
            return st.integers(schema["minimum"], schema["maximum"])
        case "number":
            return st.floats(schema["exclusiveMinimum"], schema["maximum"], exclude_min=True, width=32)
        case "string" if "pattern" in schema:
            return st.from_regex(schema["pattern"], fullmatch=True, alphabet=_ASCII)
        case "string":
            return _TEXT
        case "array":
            return st.lists(_drawn(schema["items"]), max_size=2)
        case "object" if "properties" in schema:
            # What switches something on or chooses between ways is always drawn, or few sets would have it.
            needed = {
                key
                for key, value in schema["properties"].items()
                if key in schema.get("required", ())
                or {"properties", "enum"} & set(value)
                or key == "enabled"
            }
            fields = {key: _drawn(value) for key, value in schema["properties"].items()}
            required = {key: value for key, value in fields.items() if key in needed}
            optional = {key: value for key, value in fields.items() if key not in needed}
            return st.fixed_dictionaries(required, optional=optional)
        case "object" if "propertyNames" in schema:
            return st.dictionaries(
                _drawn({"type": "string", **schema["propertyNames"]}),
                _drawn(schema["additionalProperties"]),
                max_size=2,
            )
    return st.just({})


def consistent(values: dict[str, Any]) -> dict[str, Any]:
    """The same values with every contradiction taken out."""
    _settle_controller(values.setdefault("controller", {}), values)
    _settle_groups(values)
    _settle_public(values)
    _settle_storage(values)
    _settle_ray(values)
    monitor = values.get("metrics", {}).get("serviceMonitor", {})
    if monitor.get("enabled") and not monitor.get("tokenSecret"):
        monitor["tokenSecret"] = "metrics-token"
    return values


def _settle_controller(controller: dict[str, Any], values: dict[str, Any]) -> None:
    controller["replicas"] = 1
    port = controller.get("port", 8470)
    if 10002 <= port <= 19999 or port in _RESERVED_PORTS:
        controller["port"] = 8470
    for group in [values.get("head", {}), values.get("workers", {}), *values.get("extraWorkerGroups", [])]:
        for entry in group.get("env", []):
            entry["name"] = "MY_" + entry["name"]


def _settle_groups(values: dict[str, Any]) -> None:
    workers = values.setdefault("workers", {})
    workers.setdefault("min", 1)
    workers.setdefault("max", 4)
    groups = [workers, *values.get("extraWorkerGroups", [])]
    variant = values.get("image", {}).get("variant", "cpu")
    makes_classes = values.get("priorityClasses", {}).get("create", False)
    for index, group in enumerate(groups):
        group["name"] = f"{group.get('name', 'workers')[:20].rstrip('-')}{index}"
        group["min"], group["max"] = sorted((group["min"], group["max"]))
        if not values.get("autoscaling", {}).get("enabled", True):
            group["min"] = group["max"]
        # A further group takes the image of `workers` where it names none.
        image = group.get("image", workers.get("image", {}))
        is_cuda = image.get("variant", variant) == "cuda"
        group["gpus"] = max(1, group.get("gpus", 0)) if is_cuda else 0
        if makes_classes:
            group["priorityClassName"] = ""
    if makes_classes:
        values.setdefault("head", {})["priorityClassName"] = ""
        classes = values["priorityClasses"]
        low, high = sorted((classes.get("workerValue", 10_000), classes.get("headValue", 100_000)))
        classes["workerValue"], classes["headValue"] = (low, high) if low < high else (low - 1, high)
        classes["workerValue"] = max(classes["workerValue"], -1_000_000_000)
        if classes["workerValue"] >= classes["headValue"]:
            classes["headValue"] = classes["workerValue"] + 1


def _settle_public(values: dict[str, Any]) -> None:
    ingress = values.setdefault("ingress", {})
    service = values.setdefault("service", {})
    policy = values.setdefault("networkPolicy", {})
    ingress["host"] = (ingress.get("host") or "hdet.example.com") if ingress.get("enabled") else ""
    if ingress.get("enabled") or service.get("type", "ClusterIP") != "ClusterIP":
        values.setdefault("ray", {}).setdefault("auth", {})["mode"] = "token"
        has_certificate = ingress.get("enabled") and ingress.get("tlsSecret")
        if not (values["controller"].get("tlsTerminated") or has_certificate):
            values["controller"]["insecureIKnow"] = True
        if not policy.get("allowFrom"):
            policy["allowExternal"] = True
    if service.get("type") != "LoadBalancer":
        service["loadBalancerSourceRanges"] = []
    if not policy.get("restrictEgress"):
        policy["egress"] = []


def _settle_storage(values: dict[str, Any]) -> None:
    checkpoints = values.setdefault("checkpoints", {})
    if checkpoints.get("kind", "volume") == "uri":
        checkpoints["uri"] = checkpoints.get("uri") or "s3://bucket/runs"
        checkpoints["existingClaim"] = ""
    else:
        checkpoints["uri"] = ""
    state = values.get("state", {}).get("existingClaim")
    if state and state == checkpoints.get("existingClaim"):
        checkpoints["existingClaim"] = ""


def _settle_ray(values: dict[str, Any]) -> None:
    ray = values.setdefault("ray", {})
    tolerance = ray.setdefault("gcsFaultTolerance", {})
    if tolerance.get("backend") == "redis":
        tolerance["redisAddress"] = tolerance.get("redisAddress") or "redis:6379"
    else:
        tolerance["redisAddress"] = tolerance["redisPasswordSecret"] = ""
    if ray.get("auth", {}).get("mode") == "disabled":
        ray["auth"]["existingSecret"] = ""
    account = values.setdefault("serviceAccount", {})
    if not account.get("create", True):
        account["headName"] = account.get("headName") or "head"
        account["workerName"] = account.get("workerName") or "worker"
        account["annotations"] = {}
    if account.get("headName") and account["headName"] == account.get("workerName"):
        account["workerName"] = account["headName"][:50].rstrip("-") + "-worker"
