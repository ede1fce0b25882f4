"""Reading JSON from strangers: what the standard parser lets through and we don't.

NaN and infinity, numbers that overflow to infinity, a key that stands twice, lone surrogates, and nesting
that would exhaust the stack of whoever walks the value later.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

from hdet_service.problems import BadRequest

MAX_DEPTH = 64


def loads(raw: bytes) -> Any:
    """The value of a JSON text.

    Raises:
        BadRequest: not UTF-8, not JSON, or one of the things named above.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRequest(f"the body is not UTF-8 at byte {error.start}; send JSON as UTF-8") from error
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_constant=_refuse_constant, parse_float=_finite
        )
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise BadRequest(f"the body is not JSON: {error.msg} at {where}") from error
    except RecursionError as error:
        raise BadRequest(_TOO_DEEP) from error
    except ValueError as error:  # an integer of more digits than Python converts
        raise BadRequest("the body holds an integer that is too long to be one of ours") from error
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH:
        _check_depth(value)
    if "\\u" in text:
        _check_surrogates(value)
    return value


def digest(value: Any) -> str:
    """SHA-256 of a value in canonical JSON: equal for bodies that say the same."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


_TOO_DEEP = f"the body nests deeper than {MAX_DEPTH} levels; flatten it"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise BadRequest(f"the key {twice[:100]!r} stands twice in one object; which one counts is unclear")
    return value


def _refuse_constant(name: str) -> float:
    raise BadRequest(f"{name} is no JSON number; leave the field out, or send a finite one")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise BadRequest(f"{text[:40]} is beyond what a double holds; send a finite number")
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            item
            for held in level
            if isinstance(held, dict | list)
            for item in (held.values() if isinstance(held, dict) else held)
        ]
        if not level:
            return
    raise BadRequest(_TOO_DEEP)


def _check_surrogates(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRequest("the body holds half of a surrogate pair (\\ud800 to \\udfff alone)") from error
