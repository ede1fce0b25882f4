"""A job's spec from a file and from flags, checked whole before anything is sent."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # it carries no types
from pydantic import ValidationError

from hdet_ray.cli.assignments import guess
from hdet_ray.exceptions import ConfigError
from hdet_service.schemas import JobSpec

_EXAMPLE = "hdet submit --name x --entrypoint byte_lm --replicas 3"


@dataclass(frozen=True, slots=True, kw_only=True)
class Flags:
    """What `hdet submit` was told beside the file; None and empty leave the file's word."""

    name: str | None = None
    entrypoint: str | None = None
    replicas: int | None = None
    settings: Sequence[str] = ()
    """``key=value`` of the config."""
    controller: str | None = None
    pip: Sequence[str] = ()
    env: Sequence[str] = ()
    labels: Sequence[str] = ()
    priority: int | None = None
    max_failures: int | None = None


def spec_of(file: str | None, flags: Flags) -> dict[str, Any]:
    """The spec that a file and flags make together; flags come last.

    Args:
        file: A YAML or JSON file; ``-`` reads standard input.

    Raises:
        ConfigError: the file can't be read, or a flag is no ``key=value``.
    """
    spec = read_spec(file) if file is not None else {}
    _put(spec, "name", flags.name)
    _put(spec, "entrypoint", flags.entrypoint)
    _put(spec, "priority", flags.priority)
    _put(spec, "max_failures", flags.max_failures)
    if "name" not in spec and isinstance(spec.get("entrypoint"), str):
        spec["name"] = _name_from(spec["entrypoint"])
    if flags.replicas is not None:
        spec["replicas"] = {**_mapping(spec, "replicas"), "min": flags.replicas, "max": flags.replicas}
    if flags.settings:
        config = {key: _plain(guess(value)) for key, value in _pairs("--set", flags.settings).items()}
        spec["config"] = {**_mapping(spec, "config"), **config}
    if flags.controller is not None:
        spec["hdet"] = {"controller": flags.controller}
    if flags.labels:
        spec["labels"] = {**_mapping(spec, "labels"), **_pairs("--label", flags.labels)}
    if flags.pip:
        spec["runtime_env"] = {**_mapping(spec, "runtime_env"), "pip": list(flags.pip)}
    if flags.env:
        runtime_env = _mapping(spec, "runtime_env")
        variables = {**_mapping(runtime_env, "env_vars"), **_pairs("--env", flags.env)}
        spec["runtime_env"] = {**runtime_env, "env_vars": variables}
    return spec


def with_package(spec: Mapping[str, Any], sha256: str) -> dict[str, Any]:
    """The spec with an uploaded package as its working directory."""
    return {**spec, "runtime_env": {**_mapping(spec, "runtime_env"), "working_dir": sha256}}


def check(spec: Mapping[str, Any]) -> None:
    """Refuse what the service would refuse.

    Raises:
        ConfigError: names every field that is wrong, and what with it.
    """
    try:
        text = json.dumps(spec, allow_nan=False)
    except ValueError as error:
        raise ConfigError(
            "the spec holds a number that is not finite (NaN or infinity); JSON has none"
        ) from error
    try:
        JobSpec.model_validate_json(text)
    except ValidationError as error:
        problems = [_problem(item) for item in error.errors(include_url=False)]
        raise ConfigError("the job's spec can't work: " + "; ".join(problems)) from error


def read_spec(file: str) -> dict[str, Any]:
    """The mapping in a YAML or JSON file.

    Raises:
        ConfigError: no such file, no YAML or JSON in it, or no mapping.
    """
    where = "standard input" if file == "-" else file
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{where} can't be read: {error}; give a YAML or JSON file of a job's spec"
        ) from error
    try:
        spec = json.loads(text, object_pairs_hook=_unique) if text.lstrip()[:1] == "{" else None
    except json.JSONDecodeError:
        spec = None  # a YAML mapping may start with a brace as well
    if spec is None:
        try:
            spec = yaml.load(text, _Loader)
        except yaml.YAMLError as error:
            raise ConfigError(f"{where} is neither JSON nor YAML: {' '.join(str(error).split())}") from error
    if not isinstance(spec, dict):
        raise ConfigError(f"{where} holds no mapping; a spec looks like {{name: x, entrypoint: byte_lm, …}}")
    return spec


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # as above
    """YAML 1.2's plain values: ``1e-3`` is a number, ``no`` and ``2026-01-01`` are texts."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  # PyYAML's own form

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """A mapping in which no key stands twice.

        Raises:
            yaml.YAMLError: one does, or it is no text.
        """
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for i, key in enumerate(keys):
            if not isinstance(key, str):
                raise yaml.YAMLError(f"the key {key!r} is no text{node.start_mark}")
            if key in keys[:i]:
                raise yaml.YAMLError(f"the key {key!r} stands twice{node.start_mark}")
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:null", re.compile(r"^(~|null|Null|NULL|)$"), ["~", "n", "N", ""]
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?(0|[1-9][0-9]*)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?$|^[-+]?[0-9]+[eE][-+]?[0-9]+$"
        r"|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"
    ),
    list("-+.0123456789"),
)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    held: dict[str, Any] = {}
    for key, value in pairs:
        if key in held:
            raise ConfigError(f"the key {key!r} stands twice in the spec; keep one of them")
        held[key] = value
    return held


def _problem(item: Any) -> str:
    field = ".".join(str(part) for part in item["loc"])
    message = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "missing":
        message = f"is missing, as in: {_EXAMPLE}"
    elif item["type"] == "extra_forbidden":
        message = "is not known; `hdet submit --help` lists what there is"
    return f"{field}: {message}" if field else message


def _pairs(flag: str, texts: Sequence[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator or not key.strip():
            raise ConfigError(f"{flag} {text!r} is no assignment; write it as {flag} KEY=VALUE")
        pairs[key.strip()] = value.strip()
    return pairs


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _put(spec: dict[str, Any], field: str, value: object) -> None:
    if value is not None:
        spec[field] = value


def _mapping(spec: Mapping[str, Any], field: str) -> dict[str, Any]:
    value = spec.get(field) or {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{field}: {value!r} is no mapping of names to values")
    return dict(value)


def _name_from(entrypoint: str) -> str:
    """A name for a job that was given none: ``train_loop`` for ``my.module:train_loop``."""
    last = re.split(r"[\s:]+", entrypoint.strip())[-1] if ":" in entrypoint else entrypoint.strip()
    return re.sub(r"[^A-Za-z0-9._]+", "-", last).strip("-._")[:64] or "job"
