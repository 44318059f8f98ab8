"""Finds data files: those that ship with zoo (`configs/` and `registry/`), and those of other installed packages."""

from __future__ import annotations

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from zoo.errors import UnknownNameError

_PACKAGED = re.compile(r"package:([A-Za-z_]\w*)((?:/[\w.-]+)*)")


@cache
def folder(name: str) -> Path:
    """The folder `configs` or `registry`: the packaged copy, else the one of the source tree.

    A wheel carries them as `zoo/_configs` and `zoo/_registry`; a checkout and an editable
    install read them where they are edited.
    """
    package = Path(__file__).resolve().parent
    for candidate in (package / f"_{name}", package.parent / name):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"the installation of zoo is incomplete: it has no {name!r} folder")


def packaged(source: str | Path) -> Path:
    """A path as it is, or the path that `package:NAME/PATH` means: a file or folder within an installed package.

    The package is looked for, not imported: none of its code runs.

    Raises:
        UnknownNameError: no such package, or no path within one.
    """
    text = str(source)
    if not text.startswith("package:"):
        return Path(source)
    match = _PACKAGED.fullmatch(text)
    if match is None or ".." in Path(text).parts:
        raise UnknownNameError(f"{text!r}: expected package:NAME/PATH with the name of an installed package, as it is imported")
    try:
        spec = find_spec(match[1])  # of a name without dots this imports nothing
    except ValueError:  # a module such as __main__, which came from nowhere
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise UnknownNameError(f"{text!r}: no package {match[1]!r} is installed")
    return Path(next(iter(spec.submodule_search_locations))) / match[2].lstrip("/")
