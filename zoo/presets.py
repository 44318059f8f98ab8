"""The presets that ship with zoo: their names and their files. Listing them imports next to nothing."""

from __future__ import annotations

import difflib
import fnmatch
import re
from pathlib import Path
from typing import Any

from zoo.errors import ConfigError, unknown
from zoo.resources import folder


def list_models(pattern: str = "*") -> list[str]:
    """The names of the model presets that match a shell pattern: `zoo.list_models("vit*")`."""
    return _presets("models", pattern)


def list_runs(pattern: str = "*") -> list[str]:
    """The names of the training runs that ship with zoo."""
    return _presets("train", pattern)


def find(name: str | Path, category: str) -> Path:
    """The YAML file of a preset's name, or of a path.

    Raises:
        UnknownNameError: neither a preset nor a file; the message gives the nearest preset.
    """
    text = str(name)
    if isinstance(name, Path) or text.endswith((".yaml", ".yml")) or "/" in text:
        path = Path(name)
        if path.is_file():
            return path
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], n=1)
        raise ConfigError(f"{path}: no such file" + (f"; did you mean {near[0]!r}?" if near else ""))
    if text in _presets(category, "*"):
        return folder("configs") / category / f"{text}.yaml"
    raise unknown({"models": "model", "train": "run"}[category], text, _presets(category, "*"))


def _presets(category: str, pattern: str) -> list[str]:
    names = sorted((file.stem for file in (folder("configs") / category).glob("*.yaml")), key=_natural)
    return [name for name in names if fnmatch.fnmatchcase(name, pattern)]


def _natural(name: str) -> list[Any]:
    return [int(piece) if piece.isdigit() else piece for piece in re.split(r"(\d+)", name)]


def summary(name: str, category: str = "models") -> str:
    """What a preset is: the first comment of its file that is no note to an editor."""
    with find(name, category).open(encoding="utf-8") as lines:
        comments = (line[1:].strip() for line in lines if line.startswith("#") and "$schema" not in line)
        return next(comments, "").partition(" (")[0].rstrip(".")


def print_rows(rows: dict[str, str]) -> None:
    """Prints names and what they are in two columns."""
    width = max(map(len, rows), default=0)
    for name, text in rows.items():
        print(f"{name:{width}}  {text}")
