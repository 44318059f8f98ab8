"""Lines or paragraphs of text files."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property, partial
from typing import Any, Literal

from zoo.data.base import SplitName
from zoo.data.broken import Broken
from zoo.data.paths import PARTS, PathsConfig, PathsData
from zoo.data.rows import Example, Row, Rows, Stream
from zoo.data.shares import part_of
from zoo.data.text import TextConfig, TextData
from zoo.errors import DataError
from zoo.extras import require

Unit = Literal["line", "paragraph"]


class TextFiles(PathsData, TextData):
    """The lines or the paragraphs of text files of the user's, in UTF-8.

    Blank lines are no examples. What has no files of its own is kept out of the training files by what a text says, so
    that no line kept out is trained on elsewhere, and streaming or not the parts are the same.
    Shapes: input_ids and attention_mask (batch, tokens).
    """

    class Config(TextConfig, PathsConfig):
        """Config of `text-files` data."""

        type: Literal["text-files"] = "text-files"
        unit: Unit = "line"
        """What an example is; paragraphs are parted by blank lines."""

    config: Config

    def split(self, name: SplitName) -> Rows | Stream:
        """The texts of one part."""
        if self.config.streaming:
            for part in PARTS:
                self.files(part)  # a path that leads nowhere is an error now, not after the training
            return Stream(partial(self._streamed, name), self.read)
        return Rows(self._rows[name], self.read)

    def read(self, row: Row) -> Example:
        """An example of a stored text."""
        if row["problem"]:
            raise Broken(row["place"], row["problem"])
        return self.tokens(row["text"])

    @cached_property
    def _rows(self) -> dict[SplitName, Any]:
        return {name: self._stored(name) for name in PARTS}

    def _stored(self, name: SplitName) -> Any:
        columns: dict[str, list[str]] = {column: [] for column in self._features()}
        for row in texts_of(self.files(name), self.config.unit, name, self.part_shares(name)):
            for column, values in columns.items():
                values.append(row[column])
        return require("datasets", "train", self.place).Dataset.from_dict(columns, features=self._features())

    def _streamed(self, name: SplitName, order: int | None) -> Any:
        datasets = require("datasets", "train", self.place)
        fields = {"files": self.files(name), "unit": self.config.unit, "part": name, "shares": self.part_shares(name)}
        rows = datasets.IterableDataset.from_generator(texts_of, gen_kwargs=fields, features=self._features())
        return rows if order is None else rows.shuffle(seed=order, buffer_size=self.config.buffer)

    def _features(self) -> Any:
        datasets = require("datasets", "train", self.place)
        return datasets.Features({name: datasets.Value("string") for name in ("text", "place", "problem")})


def texts_of(files: list[str], unit: Unit, part: SplitName, shares: tuple[float, float] | None) -> Iterator[Row]:
    """The texts of a part: `text`, its `place` (file and line), and a `problem` with it, or an empty string.

    Args:
        shares: of test and validation; None if all texts are of one part.
    """
    for file in files:
        for number, content in _units(file, unit):
            if shares is not None and part_of(content, *shares) != part:
                continue
            place = f"{file}:{number}"
            try:
                yield {"text": content.decode("utf-8"), "place": place, "problem": ""}
            except UnicodeDecodeError as error:
                problem = f"no UTF-8: {error.reason} {content[error.start]:#04x}"
                yield {"text": "", "place": place, "problem": problem}


def _units(file: str, unit: Unit) -> Iterator[tuple[int, bytes]]:
    """The lines or paragraphs of a file, each with the number of its first line."""
    lines: list[bytes] = []
    try:
        with open(file, "rb") as stream:
            for number, line in enumerate(stream, start=1):
                line = line.removeprefix(b"\xef\xbb\xbf" if number == 1 else b"").rstrip()
                text = line.strip()
                if unit == "line":
                    if text:
                        yield number, text
                elif text:
                    lines.append(line)
                elif lines:
                    yield number - len(lines), b"\n".join(lines)
                    lines = []
        if lines:
            yield number - len(lines) + 1, b"\n".join(lines)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from None
