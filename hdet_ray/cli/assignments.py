"""``--set key=value``: text from a command line to typed settings."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from hdet_ray.exceptions import ConfigError

Value = bool | int | float | str | tuple["Value", ...] | None

_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def parse_assignments(texts: Sequence[str], defaults: Mapping[str, object]) -> dict[str, Value]:
    """Settings from ``key=value`` texts; a key given twice takes its last value.

    Args:
        texts: As typed.
        defaults: Every known key with its default. A value takes the default's type; where that is None, the
            type that it looks like. A tuple's values are separated by commas.

    Raises:
        ConfigError: no ``=``, an unknown key (names the known ones and the closest), or a value that is not
            of the key's type.
    """
    settings: dict[str, Value] = {}
    for text in texts:
        key, separator, value = (part.strip() for part in text.partition("="))
        if not separator or not key:
            raise ConfigError(
                f"--set {text!r} is no assignment; write it as key=value, for example steps=500"
            )
        if key not in defaults:
            raise ConfigError(_unknown(key, defaults))
        settings[key] = _typed(key, value, defaults[key])
    return settings


def guess(text: str) -> Value:
    """The value that a text looks like: ``none``, a boolean, an integer, a float, else the text itself."""
    if text.lower() in ("none", "null"):
        return None
    if text.lower() in _BOOLEANS:
        return _BOOLEANS[text.lower()]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _typed(key: str, text: str, default: object) -> Value:
    value = guess(text)
    if default is None:
        return value
    if isinstance(default, str):
        return text
    if isinstance(default, tuple):
        return tuple(_typed(key, part.strip(), default[0]) for part in text.split(","))
    wanted = type(default)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if wanted is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if type(value) is not wanted:
        kinds = {bool: "true or false", int: "an integer", float: "a number"}
        raise ConfigError(
            f"--set {key}={text}: {key} takes {kinds.get(wanted, wanted.__name__)}; its default is {default}"
        )
    return value


def _unknown(key: str, defaults: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(key, defaults, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"--set {key}: no such setting.{hint} Known: {', '.join(sorted(defaults))}"
