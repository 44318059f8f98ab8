"""The text of Python's own documentation."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, Literal

from zoo.data.base import DataConfig, SplitName
from zoo.data.rows import Example, Row, Rows
from zoo.data.shares import part_of
from zoo.data.text import TextConfig, TextData
from zoo.errors import DataError
from zoo.extras import require

TEST = 0.2


class Pydoc(TextData):
    """The paragraphs of Python's documentation that come with Python (`pydoc_data.topics`), so that no network is needed.

    The topics repeat each other, so that a paragraph counts once, however it is indented, wrapped, punctuated or
    capitalised; paragraphs of fewer than five words, such as headings, are left out. The test part is about a fifth, the
    same in every run, and no text of it occurs in another part, nor inside of a longer paragraph there. Which paragraphs
    there are depends on the version of Python.
    Shapes: input_ids and attention_mask (batch, tokens).
    """

    class Config(TextConfig, DataConfig):
        """Config of the `pydoc` data."""

        type: Literal["pydoc"] = "pydoc"

    config: Config

    def split(self, name: SplitName) -> Rows:
        """The paragraphs of one part."""
        return Rows(self._parts[name], self.read)

    def read(self, row: Row) -> Example:
        """An example of a paragraph."""
        return self.tokens(row["text"])

    @cached_property
    def _parts(self) -> dict[SplitName, Any]:
        try:
            from pydoc_data.topics import topics
        except ImportError:  # some systems ship Python without its documentation
            raise DataError(f"{self.place}: this Python comes without its documentation (pydoc_data.topics)") from None
        paragraphs = unique_paragraphs(topics[name] for name in sorted(topics))
        parts = apart(paragraphs, TEST, self.config.validation)
        datasets = require("datasets", "train", self.place)
        features = datasets.Features({"text": datasets.Value("string")})
        return {name: datasets.Dataset.from_dict({"text": texts}, features=features) for name, texts in parts.items()}


def unique_paragraphs(texts: Iterable[str]) -> dict[str, str]:
    """The paragraphs of at least five words, each once; by their words alone."""
    found: dict[str, str] = {}
    for text in texts:
        for paragraph in re.split(r"\n[ \t]*\n", text):
            words = re.findall(r"\w+", paragraph.casefold())
            if len(words) >= 5:
                found.setdefault(f" {' '.join(words)} ", textwrap.dedent(paragraph).strip())
    return found


def apart(paragraphs: Mapping[str, str], test: float, validation: float) -> dict[SplitName, list[str]]:
    """The paragraphs of each part; what is kept out and stands inside of a longer one elsewhere is left out."""
    keys: dict[SplitName, list[str]] = {"train": [], "validation": [], "test": []}
    for key in paragraphs:
        keys[part_of(key.encode(), test, validation)].append(key)
    rest = "\n".join(keys["train"])
    keys["validation"] = [key for key in keys["validation"] if key not in rest]
    rest = "\n".join([rest, *keys["validation"]])
    keys["test"] = [key for key in keys["test"] if key not in rest]
    return {name: [paragraphs[key] for key in chosen] for name, chosen in keys.items()}


__all__ = ["Pydoc"]
