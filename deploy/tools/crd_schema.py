"""Derives a compact JSON Schema from a CustomResourceDefinition, for checks of rendered objects.

    python -m deploy.tools.crd_schema ray.io_rayclusters.yaml --source "ray-project/kuberay …" \\
        --version v1.7.0 -o tests/deploy/schemas/raycluster.json

A definition repeats Kubernetes' own types in full, with their prose: thousands of lines. Here a field of
such a type becomes a reference to Kubernetes' schema of the release that the other objects are checked by,
and only the resource's own fields stay: names, types, bounds. Unknown fields are refused everywhere.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

KUBERNETES = "/api/_definitions.json#/$defs/"
_CORE = "io.k8s.api.core.v1."
_NETWORK = "io.k8s.api.networking.v1."
_META = "io.k8s.apimachinery.pkg.apis.meta.v1."
QUANTITY = "io.k8s.apimachinery.pkg.api.resource.Quantity"

# Fields of Kubernetes' types, by their name and one name that only the real thing has inside.
_KUBERNETES_TYPES: Mapping[tuple[str, str], str] = {
    ("template", "spec"): _CORE + "PodTemplateSpec",
    ("headService", "spec"): _CORE + "Service",
    ("securityContext", "runAsNonRoot"): _CORE + "SecurityContext",
    ("resources", "limits"): _CORE + "ResourceRequirements",
    ("valueFrom", "secretKeyRef"): _CORE + "EnvVarSource",
    ("selector", "matchLabels"): _META + "LabelSelector",
    ("env", "valueFrom"): _CORE + "EnvVar",
    ("envFrom", "secretRef"): _CORE + "EnvFromSource",
    ("volumeMounts", "mountPath"): _CORE + "VolumeMount",
    ("ingressRules", "from"): _NETWORK + "NetworkPolicyIngressRule",
    ("egressRules", "to"): _NETWORK + "NetworkPolicyEgressRule",
}
_KEPT = ("enum", "pattern", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems")


def derive(definition: Mapping[str, Any], source: str, version: str) -> dict[str, Any]:
    """The compact schema of a definition's ``v1``."""
    [served] = [entry for entry in definition["spec"]["versions"] if entry["name"] == "v1"]
    kind = definition["spec"]["names"]["kind"]
    group = definition["spec"]["group"]
    whole = served["schema"]["openAPIV3Schema"]
    return {
        "$comment": f"Derived by deploy/tools/crd_schema.py from {source}, release {version} (Apache-2.0)",
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"https://kubernetes.io/derived/{kind.lower()}.json",
        "type": "object",
        "additionalProperties": False,
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "properties": {
            "apiVersion": {"const": f"{group}/v1"},
            "kind": {"const": kind},
            "metadata": {"$ref": KUBERNETES + _META + "ObjectMeta"},
            "spec": _compact("spec", whole["properties"]["spec"]),
        },
    }


def _compact(name: str, field: Mapping[str, Any]) -> dict[str, Any]:
    if field.get("x-kubernetes-int-or-string"):
        # A quantity is told from a port by the pattern that Kubernetes gives the first.
        return {"$ref": KUBERNETES + QUANTITY} if "pattern" in field else {"type": ["integer", "string"]}
    inside = field.get("items", field).get("properties", {})
    for (known, mark), type_name in _KUBERNETES_TYPES.items():
        if name == known and mark in inside:
            reference = {"$ref": KUBERNETES + type_name}
            return {"type": "array", "items": reference} if "items" in field else reference
    compact: dict[str, Any] = {key: field[key] for key in ("type", *_KEPT) if key in field}
    if field.get("nullable") and "type" in compact:
        compact["type"] = [compact["type"], "null"]
    if "items" in field:
        compact["items"] = _compact(name, field["items"])
    if isinstance(field.get("additionalProperties"), dict):
        compact["additionalProperties"] = _compact(name, field["additionalProperties"])
    if "properties" in field:
        properties = field["properties"]
        compact["properties"] = {key: _compact(key, value) for key, value in sorted(properties.items())}
        compact["additionalProperties"] = False
        # What has a default is filled in by the API server before it looks.
        required = [key for key in field.get("required", []) if "default" not in properties[key]]
        if required:
            compact["required"] = required
    return compact


def main() -> None:
    """Entry of the command line."""
    parser = argparse.ArgumentParser(prog="python -m deploy.tools.crd_schema", description=__doc__)
    parser.add_argument("definition", type=Path, help="the CustomResourceDefinition, YAML")
    parser.add_argument("--source", required=True, help="repository and path that it is from")
    parser.add_argument("--version", required=True, help="release that it is from")
    parser.add_argument("-o", "--output", type=Path, required=True, help="where to write the schema")
    chosen = parser.parse_args()
    definition = yaml.safe_load(chosen.definition.read_text(encoding="utf-8"))
    schema = derive(definition, chosen.source, chosen.version)
    chosen.output.write_text(json.dumps(schema, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
