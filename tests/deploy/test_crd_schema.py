"""A compact schema refuses what its definition does, and leaves Kubernetes' own types to Kubernetes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deploy.tools.crd_schema import KUBERNETES, derive

SCHEMAS = sorted((Path(__file__).resolve().parent / "schemas").glob("*.json"))

_SPEC: dict[str, Any] = {
    "type": "object",
    "required": ["name", "count"],
    "properties": {
        "name": {"type": "string", "description": "prose", "enum": ["a", "b"]},
        "count": {"type": "integer", "default": 1, "minimum": 1},
        "port": {"x-kubernetes-int-or-string": True, "anyOf": []},
        "size": {"x-kubernetes-int-or-string": True, "pattern": "^digits$"},
        "maybe": {"type": "boolean", "nullable": True},
        "template": {"type": "object", "properties": {"spec": {"type": "object"}}},
        "env": {"type": "array", "items": {"type": "object", "properties": {"valueFrom": {}}}},
        "free": {"type": "object", "additionalProperties": {"type": "string", "description": "prose"}},
    },
}
_DEFINITION = {
    "spec": {
        "group": "example.com",
        "names": {"kind": "Thing"},
        "versions": [
            {"name": "v1", "schema": {"openAPIV3Schema": {"properties": {"spec": _SPEC}}}},
            {"name": "v1alpha1"},
        ],
    }
}


def test_own_fields_stay_closed_and_without_prose() -> None:
    spec = derive(_DEFINITION, "here", "v1.2.3")["properties"]["spec"]
    assert spec["additionalProperties"] is False
    assert spec["properties"]["name"] == {"type": "string", "enum": ["a", "b"]}
    assert spec["properties"]["free"] == {"type": "object", "additionalProperties": {"type": "string"}}
    assert spec["properties"]["maybe"] == {"type": ["boolean", "null"]}


def test_what_has_a_default_need_not_be_given() -> None:
    assert derive(_DEFINITION, "here", "v1.2.3")["properties"]["spec"]["required"] == ["name"]


def test_types_of_kubernetes_become_references() -> None:
    fields = derive(_DEFINITION, "here", "v1.2.3")["properties"]["spec"]["properties"]
    core = KUBERNETES + "io.k8s.api.core.v1."
    assert fields["template"] == {"$ref": core + "PodTemplateSpec"}
    assert fields["env"] == {"type": "array", "items": {"$ref": core + "EnvVar"}}
    assert fields["size"]["$ref"].endswith("resource.Quantity")
    assert fields["port"] == {"type": ["integer", "string"]}


@pytest.mark.parametrize("file", SCHEMAS, ids=lambda path: path.stem)
def test_a_committed_schema_says_where_it_is_from(file: Path) -> None:
    schema = json.loads(file.read_text(encoding="utf-8"))
    assert "Derived by deploy/tools/crd_schema.py from " in schema["$comment"]
    assert "release v" in schema["$comment"]
    assert schema["properties"]["kind"]["const"].lower() == file.stem
