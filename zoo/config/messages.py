"""A pydantic error in zoo's words: the place, the value, what was expected."""

from __future__ import annotations

import reprlib
from typing import Any

from pydantic import ValidationError

from zoo.config.base import Problem
from zoo.errors import ConfigError

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 200


def config_error(error: ValidationError, place: str = "") -> ConfigError:
    """The `ConfigError` for a failed validation; `place` names the preset or the file."""
    lines = []
    for place_inside, message in found(error):
        path = ".".join(map(str, place_inside))
        lines.append(f"{path}: {message}" if path else message)
    lines = list(dict.fromkeys(lines))
    head = f"{place}: " if place else ""
    return ConfigError(head + lines[0] if len(lines) == 1 else head + "".join(f"\n  {line}" for line in lines))


def found(error: ValidationError) -> list[Problem]:
    """The places and messages of a failed validation."""
    return [(item["loc"], _message(item)) for item in error.errors(include_url=False)]


def _message(item: Any) -> str:
    if item["type"] in ("config", "slot"):
        return str(item["msg"])
    if item["type"] == "missing":
        return "this field is needed and has no default"
    if item["type"] == "literal_error":
        return f"expected {item['ctx']['expected']}, got {_SHORT.repr(item['input'])}"
    message = str(item["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    return f"expected {message[0].lower()}{message[1:]}, got {_SHORT.repr(item['input'])}"
