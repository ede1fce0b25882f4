"""The API's description: committed, complete, true, and shown without asking another host."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from hdet_service.api_page import render_api_page
from hdet_service.app import described_app
from hdet_service.openapi import as_text

COMMITTED = Path(__file__).parents[2] / "docs" / "openapi.json"

DOCUMENT: dict[str, Any] = described_app().openapi()

OPERATIONS = [
    (f"{method.upper()} {path}", operation)
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
]
OPEN = {"GET /healthz", "GET /readyz"}


def test_the_committed_description_is_that_of_the_code() -> None:
    assert COMMITTED.read_text(encoding="utf-8") == as_text(DOCUMENT), (
        "write it anew: python -m hdet_service.openapi docs/openapi.json"
    )


def test_it_is_openapi_3_1() -> None:
    assert DOCUMENT["openapi"].startswith("3.1.")


@pytest.mark.parametrize(("name", "operation"), OPERATIONS, ids=[name for name, _ in OPERATIONS])
def test_every_operation_says_who_may_what_can_come_and_what_it_is_for(
    name: str, operation: dict[str, Any]
) -> None:
    responses = operation["responses"]
    assert operation["summary"]
    assert operation["description"]
    assert {"429", "500", "503"} <= set(responses)
    if name in OPEN:
        assert operation["security"] == []
    else:
        assert operation["security"] == [{"bearer": []}]
        assert {"401", "403"} <= set(responses)
    if "{job_id}" in name:
        assert "404" in responses
    if "requestBody" in operation:
        assert {"400", "408", "413", "415", "422"} <= set(responses)
    for status, response in responses.items():
        if int(status) >= 400:
            assert list(response["content"]) == ["application/problem+json"]


def _schema(reference: dict[str, Any]) -> dict[str, Any]:
    return {**reference, "components": DOCUMENT["components"]}


def _examples() -> list[tuple[str, dict[str, Any], Any]]:
    found = []
    for name, operation in OPERATIONS:
        holders = {**operation["responses"], "body": operation.get("requestBody", {})}
        for place, holder in holders.items():
            found += [
                (f"{name} {place}", content["schema"], content["example"])
                for content in holder.get("content", {}).values()
                if "example" in content
            ]
    return found


EXAMPLES = _examples()


@pytest.mark.parametrize(("name", "schema", "example"), EXAMPLES, ids=[name for name, _, _ in EXAMPLES])
def test_every_example_is_valid(name: str, schema: dict[str, Any], example: Any) -> None:
    if example is not None:
        Draft202012Validator(_schema(schema)).validate(example)


def test_every_reference_leads_somewhere() -> None:
    places = set(re.findall(r'"\$ref": "([^"]+)"', json.dumps(DOCUMENT)))
    assert places <= {f"#/components/schemas/{name}" for name in DOCUMENT["components"]["schemas"]}


def test_the_page_names_every_call_and_fetches_nothing_from_anywhere() -> None:
    page = render_api_page(DOCUMENT)
    for path in DOCUMENT["paths"]:
        assert path in page
    assert "<script" not in page
    assert not re.search(r'(src|href)=["\'](https?:)?//', page)
    assert "url(" not in page
