"""The API's description: OpenAPI 3.1, complete, and the same whatever machine writes it.

``python -m hdet_service.openapi docs/openapi.json`` writes the file that is committed; a test holds them
together.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter

from hdet_ray import __version__
from hdet_service import schemas
from hdet_service.api_models import Problem
from hdet_service.describing import EXAMPLE

DESCRIPTION = """\
Jobs over REST, a live schedule, and overrides that can be trusted.

* Every call but `/healthz` and `/readyz` needs `Authorization: Bearer <token>`.
* Errors are RFC 9457 problem documents; `type` is stable, `errors` lists the offending fields.
* Unknown fields and parameters are refused by name, and nothing is coerced: `"1"` is no number.
* Pages have `items` and `next`; send `next` as `cursor` to get the following page.
* Events and logs come as pages, or as a stream with `Accept: text/event-stream`; a stream goes on behind
  the id in `Last-Event-ID` and ends with an event named `end` when nothing can follow.
"""

_REQUESTS: dict[str, Any] = {
    "JobSpec": schemas.JobSpec,
    "Action": schemas.Action,
    "Override": schemas.OverrideBody,
    "Rollback": schemas.RollbackBody,
    "AutoPatch": schemas.AutoPatch,
    "NewTokenRequest": schemas.TokenBody,
    "Drain": schemas.DrainBody,
}

TAGS = [
    {"name": "jobs", "description": "Submit, watch, end."},
    {"name": "schedule", "description": "See and steer the hyperparameters of a running job."},
    {"name": "packages", "description": "Working directories of jobs."},
    {"name": "service", "description": "Tokens, audit, drain, health."},
]


def describe(app: FastAPI) -> dict[str, Any]:
    """The description of an app's routes."""
    document = get_openapi(
        title="HDET controller",
        version=__version__,
        openapi_version="3.1.0",
        description=DESCRIPTION,
        routes=app.routes,
        tags=TAGS,
    )
    components = document.setdefault("components", {})
    components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    models = components.setdefault("schemas", {})
    for name, kind in {**_REQUESTS, "Problem": Problem}.items():
        schema = TypeAdapter(kind).json_schema(ref_template="#/components/schemas/{model}")
        models.update(schema.pop("$defs", {}))
        models[name] = schema
    for unused in ("HTTPValidationError", "ValidationError"):  # FastAPI's own form of errors: never sent
        models.pop(unused, None)
    for path in document["paths"].values():
        for operation in path.values():
            _forget_validation_errors(operation)
            _place_examples(operation)
    return document


def _place_examples(operation: dict[str, Any]) -> None:
    for holder in (*operation["responses"].values(), operation.get("requestBody", {})):
        for content in holder.get("content", {}).values():
            if EXAMPLE in content:
                content["example"] = json.loads(content.pop(EXAMPLE))


def _forget_validation_errors(operation: dict[str, Any]) -> None:
    answer = operation.get("responses", {}).get("422", {})
    if "HTTPValidationError" in json.dumps(answer):
        del operation["responses"]["422"]


def as_text(document: dict[str, Any]) -> str:
    """The committed form."""
    return json.dumps(document, indent=2, ensure_ascii=False, sort_keys=True) + "\n"


def main() -> None:
    """Write the description to the file that is named, or to standard output."""
    from hdet_service.app import described_app

    text = as_text(described_app().openapi())
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
