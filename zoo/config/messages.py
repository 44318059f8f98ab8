"""A pydantic error in zoo's words: the place, the value, what was expected."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from zoo.errors import ConfigError


def config_error(error: ValidationError, place: str = "") -> ConfigError:
    """The `ConfigError` for a failed validation; `place` names the preset or the file."""
    lines = []
    for item in error.errors(include_url=False):
        path = ".".join(str(step) for step in item["loc"])
        lines.append(f"{path}: {_message(item)}" if path else _message(item))
    lines = list(dict.fromkeys(lines))
    head = f"{place}: " if place else ""
    return ConfigError(head + lines[0] if len(lines) == 1 else head + "".join(f"\n  {line}" for line in lines))


def _message(item: Any) -> str:
    if item["type"] in ("config", "slot"):
        return str(item["msg"])
    if item["type"] == "missing":
        return "this field is needed and has no default"
    if item["type"] == "literal_error":
        return f"expected {item['ctx']['expected']}, got {item['input']!r}"
    message = str(item["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    return f"expected {message[0].lower()}{message[1:]}, got {item['input']!r}"
