"""Says what is wrong with a rendered object: strict Kubernetes schemas, derived ones for custom resources,
and the rules of names, labels and quantities that schemas leave out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema_rs

from deploy.tools.crd_schema import KUBERNETES, QUANTITY
from deploy.tools.fetch import TOOLS

DERIVED = Path(__file__).resolve().parent / "schemas"
CUSTOM_KINDS = frozenset({"RayCluster", "ServiceMonitor", "PodMonitor", "PrometheusRule"})

# As the API server reads them: digits, and a suffix of powers of ten or of two, or an exponent.
_QUANTITY = r"^[+-]?([0-9]+|[0-9]+\.[0-9]*|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?$"
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
_LABEL_KEY = re.compile(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")


def problems(item: dict[str, Any], minor: str) -> list[str]:
    """What is wrong with an object on a Kubernetes of this minor version; nothing if it is valid."""
    validator = _validator(item["kind"], item["apiVersion"], minor)
    found = [f"{_at(error.instance_path)}: {error.message[:300]}" for error in validator.iter_errors(item)]
    return [*found, *_naming_problems(item)]


@cache
def _validator(kind: str, api_version: str, minor: str) -> jsonschema_rs.Draft202012Validator:
    if kind in CUSTOM_KINDS:
        schema = json.loads((DERIVED / f"{kind.lower()}.json").read_text(encoding="utf-8"))
    else:
        group, _, version = api_version.rpartition("/")
        parts = [kind.lower(), *([group.split(".")[0]] if group else []), version]
        file = TOOLS / "schemas/kubernetes" / minor / ("-".join(parts) + ".json")
        schema = json.loads(file.read_text(encoding="utf-8"))
    return jsonschema_rs.Draft202012Validator(schema, registry=_kubernetes(minor))


@cache
def _kubernetes(minor: str) -> jsonschema_rs.Registry:
    file = TOOLS / "schemas/kubernetes" / minor / "_definitions.json"
    definitions = json.loads(file.read_text(encoding="utf-8"))
    # The published schemas take any string for a quantity.
    definitions["$defs"][QUANTITY] = {
        "anyOf": [{"type": "string", "pattern": _QUANTITY}, {"type": "number", "minimum": 0}]
    }
    address = "https://kubernetes.io" + KUBERNETES.partition("#")[0]
    return jsonschema_rs.Registry([(address, definitions)])


def _at(path: list[str | int]) -> str:
    return "/".join(str(part) for part in path)


def _naming_problems(item: dict[str, Any]) -> Iterator[str]:
    name = item["metadata"]["name"]
    longest = 63 if item["kind"] in {"Service", "Pod"} else 53 if item["kind"] == "RayCluster" else 253
    if not isinstance(name, str) or not _SUBDOMAIN.fullmatch(name) or len(name) > longest:
        yield f"metadata/name: {name!r} is no name of at most {longest} characters"
    for where, labels in _maps_of(item, ("labels", "matchLabels", "nodeSelector", "selector")):
        for key, value in labels.items():
            if not _LABEL_KEY.fullmatch(key):
                yield f"{where}: {key!r} is no label"
            if not isinstance(value, str) or len(value) > 63 or not _LABEL.fullmatch(value):
                yield f"{where}/{key}: {value!r} is no label's value"
    for where, notes in _maps_of(item, ("annotations",)):
        for key, value in notes.items():
            if not isinstance(value, str):
                yield f"{where}/{key}: {value!r} is not a string"


def _maps_of(node: Any, names: tuple[str, ...], where: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every map below ``node`` that stands under one of the names and holds plain values only."""
    if isinstance(node, list):
        for index, inside in enumerate(node):
            yield from _maps_of(inside, names, f"{where}/{index}")
    if isinstance(node, dict):
        for key, inside in node.items():
            is_flat = isinstance(inside, dict) and not any(
                isinstance(v, dict | list) for v in inside.values()
            )
            if key in names and is_flat:
                yield f"{where}/{key}", inside
            yield from _maps_of(inside, names, f"{where}/{key}")
