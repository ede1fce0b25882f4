"""Dataclasses to JSON and back, so that state, plans, reports and ledger share one form.

Three rules beyond the obvious: a mapping keyed by (hyperparameter, group) nests as
``{"lr": {"0": x}}``; a number that is not finite stands as ``null`` with ``"nonfinite": true`` beside
it; a field that equals its default may be missing. Floats travel by their shortest exact form, so
what is read equals what was written bit for bit.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import operator
import types
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hdet_ray.exceptions import ConfigError, LedgerError, OverrideError

Json = Any
"""What `json.dumps` takes."""

_AS_THEY_ARE = {int, str, bool, type(None)}

HParamKey = tuple[str, int]
"""A hyperparameter's name and the optimizer parameter group that it belongs to."""


def to_json(value: object, kind: Any = None) -> Json:
    """The JSON form of a dataclass instance, or of anything that one may hold.

    Args:
        kind: The type that it is declared as: an integer where a float belongs becomes one, so that what
            is read back has the digest of what was written.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _dataclass_to_json(value)
    if isinstance(value, Mapping):
        return _mapping_to_json(value, _item_kind(kind))
    if isinstance(value, tuple | list):
        return _items_to_json(value, _item_kind(kind))
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, int) and not isinstance(value, bool) and kind in (float, float | None):
        return float(value)
    return value


def _items_to_json(items: Any, item_kind: Any) -> list[Json]:
    held = set(map(type, items))
    if held == {item_kind} and dataclasses.is_dataclass(item_kind):
        return [_dataclass_to_json(item) for item in items]
    if _are_finite_floats(items) or (held <= _AS_THEY_ARE and item_kind not in (float, float | None)):
        return list(items)
    return [to_json(item, item_kind) for item in items]


def from_json(kind: Any, data: Json, where: str = "") -> Any:
    """An instance of ``kind`` from its JSON form.

    Raises:
        LedgerError: a field is missing, unknown, or of the wrong type; names it by its path.
    """
    origin = get_origin(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _dataclass_from_json(kind, data, where)
    if origin in (Union, types.UnionType):
        return _union_from_json(kind, data, where)
    if origin is tuple:
        item = get_args(kind)[0]
        if item is float and isinstance(data, list) and _are_finite_floats(data):
            return tuple(data)
        read = _dataclass_from_json if dataclasses.is_dataclass(item) else from_json
        return tuple(read(item, v, f"{where}[{i}]") for i, v in enumerate(_expect(data, list, where)))
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return _mapping_from_json(kind, data, where)
    if origin is Literal:
        if data not in get_args(kind):
            raise LedgerError(f"{where}: {data!r} is none of {', '.join(map(repr, get_args(kind)))}")
        return data
    if kind is float:
        if data is None:
            return math.nan
        return float(_expect(data, (int, float), where))
    if kind in (int, str, bool):
        return _expect(data, kind, where)
    return data


def digest(value: object) -> str:
    """A short hash of a value's JSON form: equal on every machine for equal values."""
    return digest_of_json(to_json(value))


def digest_of_json(data: Json) -> str:
    """`digest` of the value that ``data`` is the JSON form of."""
    return digest_of_text(canonical_text(data))


def canonical_text(data: Json) -> str:
    """The one text of this JSON: sorted, without spaces."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest_of_text(text: str) -> str:
    """`digest` of the value that ``text`` is the canonical text of."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@lru_cache(maxsize=256)
def _fields(kind: Any) -> dict[str, tuple[Any, bool]]:
    """Each field's type, and whether it must be there."""
    hints = get_type_hints(kind)
    return {
        f.name: (
            hints[f.name],
            f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING,
        )
        for f in dataclasses.fields(kind)
    }


@lru_cache(maxsize=256)
def _layout(kind: Any) -> tuple[tuple[str, Any, bool, bool], ...]:
    """Each field's name and type, whether a float belongs there, and whether it is a member of a union."""
    return tuple(
        (name, hint, hint in (float, float | None), _is_member(kind, name))
        for name, (hint, _) in _fields(kind).items()
    )


def _are_finite_floats(items: Any) -> bool:
    """Floats alone, all of them finite: they are their own JSON form."""
    # What is not finite makes a sum that is not.
    return set(map(type, items)) == {float} and math.isfinite(sum(items))


def _all_finite(items: Any) -> bool:
    """Of plain values: no float among them is infinite or no number."""
    return math.isfinite(sum(x for x in items if type(x) is float))


@lru_cache(maxsize=256)
def _tag(kind: Any) -> str:
    return str(kind.__name__).lower()


def _dataclass_to_json(value: Any) -> dict[str, Json]:
    kind: Any = type(value)
    names, whole = _plain_types(kind)
    if names:
        held = _getter(kind)(value)
        if tuple(map(type, held)) in whole and _all_finite(held):
            return dict(zip(names, held, strict=True))
    out: dict[str, Json] = {}
    for name, hint, is_float, is_member in _layout(kind):
        item = getattr(value, name)
        if item is None or isinstance(item, str | bool):
            out[name] = item
        elif isinstance(item, float):
            if not math.isfinite(item):
                return _nonfinite_to_json(value)
            out[name] = item
        elif isinstance(item, int):
            out[name] = float(item) if is_float else item
        else:
            out[name] = _tagged(item) if is_member else to_json(item, hint)
    return out


def _nonfinite_to_json(value: Any) -> dict[str, Json]:
    """Of an instance with a number that is not finite. Beside such a number a null would be read as one
    more: what is None by default stays away."""
    kind: Any = type(value)
    fields = _fields(kind)
    held = {name: getattr(value, name) for name in fields}
    out = {
        name: _tagged(item) if _is_member(kind, name) else to_json(item, fields[name][0])
        for name, item in held.items()
        if item is not None or fields[name][1]
    }
    return out | {"nonfinite": True}


@lru_cache(maxsize=256)
def _plain_types(kind: Any) -> tuple[tuple[str, ...], frozenset[tuple[type, ...]]]:
    """Field names, and the types that whole instances of plain fields may have; none where a field is not
    plain."""
    options: list[tuple[type, ...]] = []
    for hint, _ in _fields(kind).values():
        members = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        if not set(members) <= {float, int, str, bool, type(None)}:
            return (), frozenset()
        options.append(members)
    return tuple(_fields(kind)), frozenset(itertools.product(*options))


@lru_cache(maxsize=256)
def _getter(kind: Any) -> Any:
    """All fields of an instance at once, as a tuple."""
    names = tuple(_fields(kind))
    get = operator.attrgetter(*names)
    return get if len(names) > 1 else lambda value: (get(value),)


def _dataclass_from_json(kind: Any, data: Json, where: str) -> Any:
    _expect(data, dict, where)
    names, whole = _plain_types(kind)
    fields = _fields(kind)
    if names and data.keys() == fields.keys() and tuple([type(data[name]) for name in names]) in whole:
        return _made(kind, data, where)  # a report has a thousand of these
    unknown = data.keys() - fields.keys() - {"nonfinite", "kind"}
    if unknown:
        raise LedgerError(f"{where or kind.__name__}: unknown field {sorted(unknown)[0]!r}")
    values = {}
    for name, (hint, required) in fields.items():
        if name not in data:
            if required:
                raise LedgerError(f"{_path(where, name)} is missing")
            continue
        item = data[name]
        if type(item) is hint:  # a float, int, str or bool where one belongs
            values[name] = item
        elif item is None and data.get("nonfinite") and hint == (float | None):
            values[name] = math.nan
        else:
            values[name] = from_json(hint, item, _path(where, name))
    return _made(kind, values, where)


def _made(kind: Any, values: Mapping[str, Any], where: str) -> Any:
    try:
        return kind(**values)
    except (ConfigError, OverrideError) as error:
        raise LedgerError(f"{where or kind.__name__}: {error}") from error


def _path(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _members(kind: Any) -> dict[str, Any]:
    """The dataclasses of a union of several, by the tag that tells them apart in JSON."""
    members: list[Any] = [m for m in get_args(kind) if dataclasses.is_dataclass(m)]
    return {_tag(m): m for m in members} if len(members) > 1 else {}


@lru_cache(maxsize=1024)
def _is_member(kind: Any, name: str) -> bool:
    hint = _fields(kind)[name][0]
    item = get_args(hint)[0] if get_origin(hint) is tuple else hint
    return bool(_members(item))


def _tagged(item: Any) -> Json:
    if isinstance(item, tuple):
        return [_tagged(i) for i in item]
    if item is None:
        return None
    kind: Any = type(item)
    return {"kind": _tag(kind), **_dataclass_to_json(item)}


def _union_from_json(kind: Any, data: Json, where: str) -> Any:
    if data is None and type(None) in get_args(kind):
        return None
    members = _members(kind)
    if members:
        tag = str(_expect(data, dict, where).get("kind"))
        if tag not in members:
            raise LedgerError(f"{where}.kind: {tag!r} is none of {', '.join(sorted(members))}")
        return from_json(members[tag], data, where)
    (inner,) = [m for m in get_args(kind) if m is not type(None)]
    return from_json(inner, data, where)


def _item_kind(kind: Any) -> Any:
    """The type of a container's items, where the container says it."""
    if get_origin(kind) in (Union, types.UnionType):
        kind = next((k for k in get_args(kind) if k is not type(None)), None)
    arguments = [k for k in get_args(kind) if k is not Ellipsis]
    return arguments[-1] if arguments else None


def _mapping_to_json(value: Mapping[Any, Any], item_kind: Any) -> dict[str, Json]:
    out: dict[str, Json] = {}
    for key, item in value.items():
        if isinstance(key, tuple):
            out.setdefault(key[0], {})[str(key[1])] = to_json(item, item_kind)
        else:
            out[str(key)] = to_json(item, item_kind)
    return out


def _mapping_from_json(kind: Any, data: Json, where: str) -> dict[Any, Any]:
    key_kind, item_kind = get_args(kind)
    _expect(data, dict, where)
    if key_kind == HParamKey:
        return {
            (name, _group(group, f"{where}.{name}")): from_json(item_kind, item, f"{where}.{name}.{group}")
            for name, groups in data.items()
            for group, item in _expect(groups, dict, f"{where}.{name}").items()
        }
    return {key: from_json(item_kind, item, f"{where}.{key}") for key, item in data.items()}


def _group(text: str, where: str) -> int:
    if not text.isdecimal():
        raise LedgerError(f"{where}: {text!r} is no parameter group; a number is")
    return int(text)


def _expect(data: Json, kind: Any, where: str) -> Any:
    if not isinstance(data, kind) or (isinstance(data, bool) and kind is not bool):
        name = getattr(kind, "__name__", "a number")
        raise LedgerError(f"{where or 'value'}: {data!r} is not {name}")
    return data
