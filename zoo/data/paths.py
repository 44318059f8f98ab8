"""What data of files that the user names share: which files are those of a part, and how one set of files is parted."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable
from itertools import chain, product
from pathlib import Path

from zoo.data.base import Data, SplitName, StreamConfig
from zoo.errors import DataError

PARTS: tuple[SplitName, ...] = ("train", "validation", "test")


class PathsConfig(StreamConfig):
    """Fields of data that are files which the user names."""

    path: str | list[str]
    """The files to train on: a path or a pattern such as `data/**/*.txt` or `data/{000..099}.tar`, or a list of them."""
    validation_path: str | list[str] | None = None
    """Those of the validation part (default: a share of the training files, by `validation`)."""
    test_path: str | list[str] | None = None
    """Those of the test part (default: a share of the training files, by `test`)."""


class PathsData(Data):
    """Base of data that are files which the user names."""

    config: PathsConfig
    usual = "*.txt"
    """What the files are called, for those who name a folder."""

    def has(self, name: SplitName) -> bool:
        return name == "train" or self._own_path(name) is not None or self.config.shares[name] > 0

    def files(self, name: SplitName) -> list[str]:
        """The files of a part, each once; those of the training part where it has none of its own.

        Raises:
            DataError: a path or a pattern that no file answers to.
        """
        field = "path" if name == "train" or self._own_path(name) is None else f"{name}_path"
        given = getattr(self.config, field)
        found: list[str] = []
        for pattern in chain.from_iterable(map(_expanded, [given] if isinstance(given, str) else given)):
            path = Path(pattern).expanduser()
            files = [str(path)] if path.is_file() else sorted(filter(_is_file, glob.glob(str(path), recursive=True)))
            if not files:
                hint = f"; did you mean {str(path / '**' / self.usual)!r}?" if path.is_dir() else ""
                raise DataError(f"{self.place}: {field}: no file answers to {pattern!r}{hint}")
            found += [file for file in files if file not in found]
        return found

    def part_shares(self, name: SplitName) -> tuple[float, float] | None:
        """The shares of test and validation that the files of a part are parted by; None if all is one part.

        Raises:
            DataError: a share of a part that has files of its own.
        """
        for each in ("test", "validation"):
            if getattr(self.config, f"{each}_path") is not None and getattr(self.config, each):
                raise DataError(f"{self.place}: `{each}` has no meaning beside `{each}_path`; leave one of them out")
        if name != "train" and self._own_path(name) is not None:
            return None
        shares = {each: share for each, share in self.config.shares.items() if getattr(self.config, f"{each}_path") is None}
        return shares.get("test", 0.0), shares.get("validation", 0.0)

    def _own_path(self, name: SplitName) -> str | list[str] | None:
        return self.config.path if name == "train" else getattr(self.config, f"{name}_path")


def _is_file(path: str) -> bool:
    return Path(path).is_file()


def _expanded(pattern: str, most: int = 1_000_000) -> Iterable[str]:
    """The paths that `{000..099}` or `{train,more}` stand for, as a shell writes them."""
    if _is_file(pattern):
        return [pattern]
    pieces = re.split(r"\{(\d+\.\.\d+|[^{}]*,[^{}]*)\}", pattern)
    choices: list[list[str]] = []
    for number, piece in enumerate(pieces):
        first, dots, last = piece.partition("..")
        if number % 2 == 0:
            choices.append([piece])
        elif dots and first.isdecimal() and last.isdecimal():
            if int(last) - int(first) > most:
                raise DataError(f"{pattern!r}: these are more than {most} files")
            choices.append([str(each).zfill(len(first)) for each in range(int(first), int(last) + 1)])
        else:
            choices.append(piece.split(","))
    return map("".join, product(*choices))


__all__ = ["PARTS", "PathsConfig", "PathsData"]
