"""Finds the data files that ship with zoo: `configs/` and `registry/`."""

from __future__ import annotations

from functools import cache
from pathlib import Path


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
