"""Reading a request: body, query and headers, strictly, after it is known who calls.

FastAPI reads a body before it runs any dependency, so a stranger could make it parse megabytes; here the
body is a dependency of its own, behind authentication, and is cut off at the cap.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, get_origin

from fastapi import Request
from pydantic import BaseModel, BeforeValidator, Field, TypeAdapter, ValidationError, WithJsonSchema

from hdet_service import strict_json
from hdet_service.problems import (
    BadRequest,
    Invalid,
    PreconditionRequired,
    RequestTimeout,
    TooLarge,
    UnsupportedMediaType,
)

BODY_TIMEOUT_S = 30.0
"""A body of at most some megabytes that takes longer is not coming."""

_UNION_TAGS = frozenset({"auto", "paper", "fixed", "set", "scale"})
IF_MATCH_PATTERN = r'^(\*|(W/)?"[!#-~]*"(, ?(W/)?"[!#-~]*")*)$'
_IDEMPOTENCY_KEY = re.compile(r"[!-~]{1,255}")


def body(kind: Any, *, is_optional: bool = False) -> Callable[[Request], Awaitable[Any]]:
    """A dependency that gives the request's body as ``kind``; an optional one may be empty."""
    adapter: TypeAdapter[Any] = TypeAdapter(kind)

    async def read(request: Request) -> Any:
        raw = await read_body(request, request.app.state.controller.settings.max_body_bytes)
        if is_optional and not raw:
            return adapter.validate_python({})
        check_content_type(request, "application/json")
        value = strict_json.loads(raw)
        request.state.body_digest = strict_json.digest(value)
        return validate(adapter, value)

    return read


def query(model: type[BaseModel]) -> Callable[[Request], Any]:
    """A dependency that gives the query as ``model``: nothing unknown, nothing twice that is no list."""
    lists = {name for name, field in model.model_fields.items() if get_origin(field.annotation) is list}
    adapter = TypeAdapter(model)

    def read(request: Request) -> Any:
        values: dict[str, Any] = {}
        for name, text in request.query_params.multi_items():
            if name in lists:
                values.setdefault(name, []).append(text)
            elif name in values:
                raise Invalid(
                    f"the parameter {name[:100]!r} stands twice; give it once",
                    errors=[{"field": name[:100], "message": "stands twice"}],
                )
            else:
                values[name] = text
        return validate(adapter, values)

    return read


def validate(adapter: TypeAdapter[Any], value: Any) -> Any:
    """The value as its type.

    Raises:
        Invalid: with every offending field.
    """
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        errors = field_errors(error)
        names = ", ".join(sorted({e["field"] or "the body" for e in errors})[:5])
        raise Invalid(
            f"not valid: {names}; each entry of `errors` says what would be", errors=errors
        ) from None


def field_errors(error: ValidationError) -> list[dict[str, str]]:
    """Offending fields by their path, as a caller wrote them."""
    out = []
    for one in error.errors(include_url=False, include_input=False, include_context=False)[:50]:
        location = list(one["loc"])
        for index in (0, 1):  # the tag of a union is no part of the path
            if len(location) > index + 1 and location[index] in _UNION_TAGS:
                del location[index]
        message = one["msg"].removeprefix("Value error, ")
        out.append({"field": ".".join(str(part) for part in location)[:300], "message": message[:1000]})
    return out


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The whole body.

    Raises:
        TooLarge: announced or found to be above the cap; no more of it is read.
        RequestTimeout: it does not arrive.
    """
    check_announced_size(request, max_bytes)
    raw = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                raw += chunk
                if len(raw) > max_bytes:
                    raise too_large(max_bytes)
    except TimeoutError as error:
        raise RequestTimeout(f"the body did not arrive within {BODY_TIMEOUT_S:g} s; send it again") from error
    return bytes(raw)


def check_announced_size(request: Request, max_bytes: int) -> None:
    """Refuse by ``Content-Length`` before a byte is read, and encodings that hide the size."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise UnsupportedMediaType(f"Content-Encoding {encoding[:40]!r} is not read; send the body as it is")
    announced = request.headers.get("content-length", "0")
    if not announced.isdecimal():
        raise BadRequest(f"Content-Length {announced[:40]!r} is no number")
    if int(announced) > max_bytes:
        raise too_large(max_bytes)


def too_large(max_bytes: int) -> TooLarge:
    """The refusal, with the cap in it."""
    return TooLarge(f"the body is larger than {max_bytes} bytes; send less", extra={"max_bytes": max_bytes})


def check_content_type(request: Request, *allowed: str) -> None:
    """Refuse a body of another type.

    Raises:
        UnsupportedMediaType: names what is read here.
    """
    given = request.headers.get("content-type", "")
    kind = given.split(";", 1)[0].strip().lower()
    if kind not in allowed:
        shown = repr(given[:100]) if given else "no Content-Type"
        raise UnsupportedMediaType(
            f"{shown} is not read here; send {' or '.join(allowed)}", headers={"Accept": ", ".join(allowed)}
        )
    charset = re.search(r"charset\s*=\s*\"?([^\s;\"]+)", given, re.IGNORECASE)
    if charset is not None and charset.group(1).lower() not in ("utf-8", "utf8", "us-ascii"):
        raise UnsupportedMediaType(f"charset {charset.group(1)[:40]!r} is not read; send UTF-8")


def idempotency_key(request: Request) -> str | None:
    """The header, where it is there.

    Raises:
        Invalid: empty, longer than 255 characters, or not visible ASCII.
    """
    key = request.headers.get("idempotency-key")
    if key is not None and not _IDEMPOTENCY_KEY.fullmatch(key):
        message = "must be 1 to 255 visible ASCII characters, such as a random UUID"
        raise Invalid(f"Idempotency-Key {message}", errors=[{"field": "Idempotency-Key", "message": message}])
    return key


def etags(header: str | None, *, accepts_weak: bool = False) -> frozenset[str] | None:
    """Entity tags of ``If-Match`` (strong ones) or ``If-None-Match``, without quotes; ``*`` is any."""
    if header is None:
        return None
    if header.strip() == "*":
        return frozenset({"*"})
    tags = re.findall(r'(?:^|,)\s*(W/)?"([^"]*)"\s*(?=,|$)', header)
    return frozenset(tag for weak, tag in tags if accepts_weak or not weak)


def required_if_match(request: Request) -> str:
    """``If-Match``, which the call needs.

    Raises:
        PreconditionRequired: it is missing.
        Invalid: it holds no entity tag.
    """
    given = optional_if_match(request)
    if given is None:
        raise PreconditionRequired(
            "an override needs `If-Match` with the ETag of the schedule that it was decided on; "
            "read `GET …/schedule` first and send its ETag"
        )
    return given


def optional_if_match(request: Request) -> str | None:
    """``If-Match``, where it is there.

    Raises:
        Invalid: it holds no entity tag.
    """
    given = request.headers.get("if-match")
    if given is not None and not re.fullmatch(IF_MATCH_PATTERN, given):
        message = 'must be an ETag in quotes, as "7", or *'
        raise Invalid(f"If-Match {message}", errors=[{"field": "If-Match", "message": message}])
    return given


def _whole_number(text: object) -> int:
    if not isinstance(text, str) or not re.fullmatch(r"0|[1-9][0-9]{0,9}", text):
        raise ValueError("must be a whole number of at most ten digits")
    return int(text)


def _truth(text: object) -> bool:
    if text not in ("true", "false"):
        raise ValueError("must be true or false")
    return text == "true"


def query_int(minimum: int, maximum: int) -> Any:
    """The type of a whole number in a query."""
    return Annotated[int, Field(ge=minimum, le=maximum), BeforeValidator(_whole_number)]


QueryBool = Annotated[bool, BeforeValidator(_truth), WithJsonSchema({"type": "boolean"})]


def path_number(request: Request, name: str, maximum: int) -> int:
    """A whole number in the path.

    Raises:
        Invalid: anything else stands there.
    """
    text = request.path_params[name]
    if not re.fullmatch(r"0|[1-9][0-9]{0,9}", text) or int(text) > maximum:
        message = f"must be a whole number from 0 to {maximum}"
        raise Invalid(f"{name} {message}", errors=[{"field": name, "message": message}])
    return int(text)
