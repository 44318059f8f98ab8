"""The docstrings of Python's standard library, and which package each is of."""

from __future__ import annotations

import ast
import re
import sysconfig
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from zoo.config import Problem
from zoo.config.base import PositiveInt
from zoo.data.base import DataConfig, SplitName
from zoo.data.image import label_of
from zoo.data.rows import Example, Row, Rows
from zoo.data.shares import few, part_of
from zoo.data.text import TextConfig, TextData
from zoo.errors import DataError
from zoo.extras import require

PACKAGES = (
    "asyncio", "collections", "email", "encodings", "http", "importlib", "logging", "multiprocessing", "unittest", "urllib",
    "wsgiref", "xml", "xmlrpc",
)  # fmt: skip
"""Those with more than fifty docstrings that every installation of Python has."""
TEST = 0.2
LEAST = 5
_TESTS = re.compile(r"(\w+_)?tests?")


class Docstrings(TextData):
    """Docstrings of Python's standard library with the package that each is of, so that no network is needed.

    Source files are read, not imported; tests of the packages are left out. A docstring counts once, however it is
    wrapped, punctuated or capitalised; one that stands in several packages, or has fewer than five words, is left out.
    Names are not taken out, so that a docstring may say of which package it is. The test part is about a fifth, the same in
    every run, and follows from what a docstring says. Which docstrings there are depends on the version of Python.
    Shapes: input_ids and attention_mask (batch, tokens), labels (batch,).
    """

    class Config(TextConfig, DataConfig):
        """Config of the `docstrings` data."""

        type: Literal["docstrings"] = "docstrings"
        packages: Annotated[list[str], Field(min_length=2)] = Field(default_factory=lambda: list(PACKAGES))
        """The packages to tell apart, in the order of their labels: names of folders of the standard library."""
        per_package: PositiveInt | None = None
        """How many docstrings of each package are trained on at most, the same in every run; null for all."""

        @field_validator("packages")
        @classmethod
        def _names(cls, packages: list[str]) -> list[str]:
            for name in packages:
                if not name.isidentifier() or packages.count(name) > 1:
                    what = "stands twice" if name.isidentifier() else "is no name of a package"
                    raise PydanticCustomError("config", f"{name!r} {what}")  # type: ignore[arg-type]
            return packages

        @property
        def label_column(self) -> str:
            """Where a row holds its class."""
            return "labels"

        @property
        def classes(self) -> int:
            """How many classes the labels tell apart."""
            return len(self.packages)

        def problems(self, **context: Any) -> Iterator[Problem]:
            yield from TextConfig.problems(self, **context)

    config: Config

    @property
    def class_names(self) -> list[str]:
        return list(self.config.packages)

    @property
    def label_column(self) -> str:
        return self.config.label_column

    def split(self, name: SplitName) -> Rows:
        """The docstrings of one part."""
        return Rows(self._parts[name], self.read)

    def read(self, row: Row) -> Example:
        """An example of a docstring."""
        return {**self.tokens(row["text"]), "labels": label_of(row["labels"], self.config.classes, self.place)}

    @cached_property
    def _parts(self) -> dict[SplitName, Any]:
        rows: dict[SplitName, dict[str, list[Any]]] = {
            part: {"text": [], "labels": []} for part in ("train", "validation", "test")
        }
        known = list(alone(self._found()))
        parts = [part_of(key.encode(), TEST, self.config.validation) for key, _, _ in known]
        chosen = self._chosen([(key, label) for (key, _, label), part in zip(known, parts) if part == "train"])
        for (key, text, label), part in zip(known, parts):
            if part != "train" or chosen is None or key.encode() in chosen:
                rows[part]["text"].append(text)
                rows[part]["labels"].append(label)
        datasets = require("datasets", "train", self.place)
        features = datasets.Features({"text": datasets.Value("string"), "labels": datasets.Value("int64")})
        return {part: datasets.Dataset.from_dict(columns, features=features) for part, columns in rows.items()}

    def _chosen(self, trained: list[tuple[str, int]]) -> set[bytes] | None:
        """The words of the docstrings that are trained on; None for all."""
        most = self.config.per_package
        if most is None:
            return None
        labels = range(self.config.classes)
        return set().union(*(few((key.encode() for key, its in trained if its == label), most) for label in labels))

    def _found(self) -> Iterator[tuple[str, int]]:
        library = Path(sysconfig.get_path("stdlib"))
        for label, package in enumerate(self.config.packages):
            found = list(docstrings(library / package))
            if not found:
                raise DataError(f"{self.place}: packages: {library / package} holds no source files with docstrings")
            yield from ((text, label) for text in found)


def docstrings(package: Path) -> Iterator[str]:
    """The docstrings of the modules, classes and functions in a folder, in the order of files and lines."""
    for file in sorted(package.rglob("*.py"), key=lambda file: file.relative_to(package).parts):
        if any(_TESTS.fullmatch(name) for name in file.relative_to(package).parts[:-1]):
            continue
        try:
            tree = ast.parse(file.read_bytes())
        except (OSError, SyntaxError, ValueError):
            continue  # a template, or a file for another version
        for node in _in_order(tree):
            text = ast.get_docstring(node)
            if text:
                yield text


def alone(found: Iterable[tuple[str, int]]) -> Iterator[tuple[str, str, int]]:
    """What tells a docstring from others (its words), the docstring and its label, without those of several labels."""
    texts: dict[str, str] = {}
    labels: dict[str, set[int]] = {}
    for text, label in found:
        words = re.findall(r"\w+", text.casefold())
        if len(words) >= LEAST:
            key = " ".join(words)
            texts.setdefault(key, text)
            labels.setdefault(key, set()).add(label)
    for key, text in texts.items():
        if len(labels[key]) == 1:
            yield key, text, min(labels[key])


def _in_order(node: ast.AST) -> Iterator[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        yield node
    for child in ast.iter_child_nodes(node):
        yield from _in_order(child)


__all__ = ["Docstrings"]
