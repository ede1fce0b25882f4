"""How an operation is described in OpenAPI: what it reads, and every status that can come, with examples.

The routes read bodies and queries themselves (`reading.py`), so they say here what FastAPI can't see.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from hdet_service import problems
from hdet_service.problems import MEDIA_TYPE, TYPE_PREFIX, ServiceError
from hdet_service.reading import IF_MATCH_PATTERN

JSON = "application/json"
EVENT_STREAM = "text/event-stream"

Schema = dict[str, Any]

EXAMPLE = "x-example"
"""An example as JSON text: FastAPI leaves out what is null, so it is put in place afterwards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Good:
    """An answer that is no problem."""

    status: int = 200
    description: str
    model: Any = None
    """A model, or a union of several."""
    example: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    """Name and description of each header that it always carries."""
    content: Mapping[str, Schema] = field(default_factory=dict)
    """Other media types and their schemas."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A header or a part of the path."""

    name: str
    place: str
    description: str
    schema: Schema
    is_required: bool = False
    example: Any = None

    def to_openapi(self) -> Schema:
        """As OpenAPI has it."""
        parameter: Schema = {
            "name": self.name,
            "in": self.place,
            "required": self.is_required,
            "description": self.description,
            "schema": self.schema,
        }
        return parameter if self.example is None else {**parameter, "example": self.example}


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """What is sent: each media type and how it is described."""

    content: Mapping[str, Schema]
    is_required: bool = True


def json_body(name: str, example: Any, *, is_required: bool = True) -> Body:
    """JSON of one of the components' schemas."""
    schema = {"$ref": f"#/components/schemas/{name}"}
    return Body(content={JSON: {"schema": schema, **_example(example)}}, is_required=is_required)


ETAG_HEADER = {"ETag": "Names what was read: send it back in `If-Match` or `If-None-Match`."}
IF_MATCH = Parameter(
    name="If-Match",
    place="header",
    description="ETag of the schedule that the change was decided on.",
    schema={"type": "string", "pattern": IF_MATCH_PATTERN},
    is_required=True,
    example='"0"',
)
OPTIONAL_IF_MATCH = Parameter(
    name="If-Match",
    place="header",
    description="ETag of the schedule that the change was decided on; checked where it is sent.",
    schema={"type": "string", "pattern": IF_MATCH_PATTERN},
    example='"1"',
)
IF_NONE_MATCH = Parameter(
    name="If-None-Match",
    place="header",
    description="ETags that are known already: 304 if it still is one of them.",
    schema={"type": "string"},
)
IDEMPOTENCY_KEY = Parameter(
    name="Idempotency-Key",
    place="header",
    description="A repeated call with the same key and body gets the first answer, with 200.",
    schema={"type": "string", "pattern": r"^[!-~]{1,255}$"},
)
ROUND = Parameter(
    name="round",
    place="path",
    description="A round that has a checkpoint.",
    schema={"type": "integer", "minimum": 0, "maximum": 1_000_000_000},
    is_required=True,
    example=12,
)

_ALWAYS = (429, 500, 503)
_CALLER = (401, 403)
_BODY = (400, 408, 413, 415, 422)

_EXAMPLES: dict[int, tuple[type[ServiceError], str]] = {
    400: (problems.BadRequest, "the body is not JSON: Expecting value at line 1, column 9"),
    401: (problems.Unauthorized, "the token is unknown or was revoked; an operator makes one"),
    403: (problems.Forbidden, "this call needs the role 'operator'; the token 'ci' has 'viewer'"),
    404: (problems.NotFound, "there is no job '01JQ' that this token may read; `GET /v1/jobs` lists those"),
    406: (problems.NotAcceptable, "'text/html' is not offered; accept application/json or text/event-stream"),
    408: (problems.RequestTimeout, "the body did not arrive within 30 s; send it again"),
    409: (problems.Conflict, "the job is SUCCEEDED, which it never leaves"),
    412: (problems.PreconditionFailed, "revision 3 is the newest, not 2; read the schedule again"),
    413: (problems.TooLarge, "the body is larger than 1048576 bytes; send less"),
    415: (problems.UnsupportedMediaType, "'text/plain' is not read here; send application/json"),
    422: (problems.Invalid, "not valid: replicas.min; each entry of `errors` says what would be"),
    428: (problems.PreconditionRequired, "an override needs `If-Match`; read `GET …/schedule` first"),
    429: (problems.TooMany, "more than 50 requests per second (burst 100); wait 20 ms"),
    500: (ServiceError, "the server failed; its log has the cause under error id 4f0c1d2e"),
    503: (problems.Unavailable, "no space is left on the service's disk; nothing was changed"),
}


def described(
    summary: str,
    *,
    good: Sequence[Good],
    also: Sequence[int] = (),
    body: Body | None = None,
    query: type[BaseModel] | None = None,
    parameters: Sequence[Parameter] = (),
    is_open: bool = False,
) -> dict[str, Any]:
    """Keyword arguments of a route's decorator.

    Args:
        summary: One line.
        good: Answers that are no problem; the first one is the usual.
        also: Further problem statuses, beside those that every call of its kind can get.
        body: What it reads.
        query: What it reads of the query.
        parameters: Headers and parts of the path.
        is_open: It asks for no token.
    """
    statuses = {*also, *(() if is_open else _CALLER), *_ALWAYS}
    if body is not None:
        statuses |= set(_BODY)
    if query is not None:
        statuses.add(422)
    extra: Schema = {"parameters": [p.to_openapi() for p in parameters] + _query_parameters(query)}
    if body is not None:
        extra["requestBody"] = {"required": body.is_required, "content": dict(body.content)}
    extra["security"] = [] if is_open else [{"bearer": []}]
    return {
        "summary": summary,
        "status_code": good[0].status,
        "responses": {**{g.status: _good(g) for g in good}, **{s: _problem(s) for s in sorted(statuses)}},
        "response_model": None,
        "openapi_extra": extra,
    }


def _good(answer: Good) -> Schema:
    out: Schema = {"description": answer.description}
    if answer.headers:
        out["headers"] = {
            name: {"description": text, "required": True, "schema": {"type": "string"}}
            for name, text in answer.headers.items()
        }
    content = {kind: {"schema": schema} for kind, schema in answer.content.items()}
    if answer.model is not None:
        out["model"] = answer.model
        if answer.example is not None:
            content[JSON] = _example(answer.example)
    if content:
        out["content"] = content
    return out


def _problem(status: int) -> Schema:
    kind, detail = _EXAMPLES[status]
    example: Schema = {
        "type": TYPE_PREFIX + kind.slug,
        "title": kind.title,
        "status": status,
        "detail": detail,
    }
    if status == 422:
        example["errors"] = [{"field": "replicas.min", "message": "Input should be a valid integer"}]
    out: Schema = {
        "description": kind.title,
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, **_example(example)}},
    }
    if status == 401:
        out["headers"] = {"WWW-Authenticate": _header("How to authenticate.")}
    if status in (429, 503):
        out["headers"] = {"Retry-After": _header("Seconds to wait.", "integer")}
    return out


def _example(value: Any) -> Schema:
    return {EXAMPLE: json.dumps(value)}


def _header(description: str, kind: str = "string") -> Schema:
    return {"description": description, "required": True, "schema": {"type": kind}}


def _query_parameters(query: type[BaseModel] | None) -> list[Schema]:
    if query is None:
        return []
    schema = query.model_json_schema(ref_template="#/components/schemas/{model}")
    out = []
    for name, one in schema.get("properties", {}).items():
        description = one.pop("description", "")
        one.pop("title", None)
        if "anyOf" in one:  # optional: what is not sent is not null
            one = {**next(s for s in one["anyOf"] if s != {"type": "null"})}
        one.pop("default", None)
        out.append(
            {"name": name, "in": "query", "required": False, "description": description, "schema": one}
        )
    return out
