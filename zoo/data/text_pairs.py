"""Pairs of texts from files: a source, such as a sentence, and a target, such as its translation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cached_property, partial
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from zoo.data.base import SplitName
from zoo.data.broken import Broken
from zoo.data.pairs import PairConfig, PairData
from zoo.data.paths import PARTS, PathsConfig, PathsData
from zoo.data.rows import Example, Row, Rows, Stream
from zoo.data.shares import part_of
from zoo.errors import DataError, did_you_mean
from zoo.extras import require

JSON = (".jsonl", ".ndjson", ".json")
COLUMNS = ("source", "target", "place", "problem")
Name = Annotated[str, Field(min_length=1)]


class TextPairs(PathsData, PairData):
    """Pairs of texts, one to a line of the user's files, in UTF-8.

    A file ending in `.jsonl` has an object in each line; in any other a line is the source, a tab and the target. With
    `target_ending` the targets stand in files of their own, line by line beside the sources. Blank lines are no examples, and
    a line that is no pair is named, counted and left out, until there are too many (`broken`). What has no files of its own is
    kept out of the training files by what the source says, so that none is trained on with another target.
    Shapes: input_ids and attention_mask (batch, tokens), labels (batch, tokens of the target).
    """

    class Config(PairConfig, PathsConfig):
        """Config of `text-pairs` data."""

        type: Literal["text-pairs"] = "text-pairs"
        target_ending: Annotated[str, Field(pattern=r"^\.[^/\\]+$")] | None = None
        """How the names of the files with the targets end, where sources and targets stand in files of their own: beside
        `train.de`, `.en` means `train.en`."""
        columns: tuple[Name, Name] = ("source", "target")
        """What source and target are called in lines of JSON."""

    config: Config
    usual = "*.tsv"

    def split(self, name: SplitName) -> Rows | Stream:
        """The pairs of one part."""
        if self.config.streaming:
            for part in PARTS:
                self.files(part)  # a path that leads nowhere is an error now, not after the training
            return Stream(partial(self._streamed, name), self.read)
        return Rows(self._rows[name], self.read)

    def read(self, row: Row) -> Example:
        """An example of a stored pair."""
        if row["problem"]:
            raise Broken(row["place"], row["problem"])
        return super().read(row)

    @cached_property
    def _rows(self) -> dict[SplitName, Any]:
        return {name: self._stored(name) for name in PARTS}

    def _stored(self, name: SplitName) -> Any:
        columns: dict[str, list[str]] = {column: [] for column in COLUMNS}
        for row in read_pairs(**self._asked(name)):
            for column, values in columns.items():
                values.append(row[column])
        return require("datasets", "train", self.place).Dataset.from_dict(columns, features=self._features())

    def _streamed(self, name: SplitName, order: int | None) -> Any:
        stream = require("datasets", "train", self.place).IterableDataset
        rows = stream.from_generator(read_pairs, gen_kwargs=self._asked(name), features=self._features())
        return rows if order is None else rows.shuffle(seed=order, buffer_size=self.config.buffer)

    def _asked(self, name: SplitName) -> dict[str, Any]:
        ending, columns = self.config.target_ending, self.config.columns
        return {"files": self.files(name), "ending": ending, "columns": columns, "part": name, "shares": self.part_shares(name)}

    def _features(self) -> Any:
        datasets = require("datasets", "train", self.place)
        return datasets.Features({name: datasets.Value("string") for name in COLUMNS})


def read_pairs(
    files: list[str], ending: str | None, columns: tuple[str, str], part: SplitName, shares: tuple[float, float] | None
) -> Iterator[Row]:
    """The pairs of a part: `source`, `target`, its `place` (file and line), and a `problem` with it, or an empty string.

    Args:
        ending: of the files of the targets; None if they stand beside the sources.
        columns: what source and target are called in JSON.
        shares: of test and validation; None if all pairs are of one part.

    Raises:
        DataError: a file cannot be read, or one of targets has not as many lines as that of its sources.
    """
    for file in files:
        for number, lines in _lines(file, ending):
            if not any(lines):
                continue
            problem = ""
            try:
                source, target = _pair(lines, columns if file.endswith(JSON) else None)
            except ValueError as error:
                source, target, problem = "", "", str(error)
            # a line that cannot be read is of one part too, so that it is counted once
            key = source.encode() if source else b"\t".join(lines)
            if shares is None or part_of(key, *shares) == part:
                yield {"source": source, "target": target, "place": f"{file}:{number}", "problem": problem}


def _pair(lines: tuple[bytes, ...], columns: tuple[str, str] | None) -> tuple[str, str]:
    """Source and target from one line, or from one of each.

    Raises:
        ValueError: there is no pair in it; the message says why.
    """
    texts: list[Any] = []
    for line in lines:
        try:
            texts.append(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise ValueError(f"no UTF-8: {error.reason} {line[error.start]:#04x}") from None
    if len(lines) == 1:
        texts = _of_json(texts[0], columns) if columns is not None else texts[0].split("\t")
        if len(texts) != 2:
            found = "no tab" if len(texts) == 1 else f"{len(texts) - 1} tabs"
            raise ValueError(f"expected a source, one tab and a target, found {found}")
    for what, text in zip(COLUMNS, texts):
        if not text.strip():
            raise ValueError(f"the {what} is empty")
    return texts[0].strip(), texts[1].strip()


def _of_json(line: str, columns: tuple[str, str]) -> list[str]:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no JSON: {getattr(error, 'msg', error)}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"expected a JSON object, found {line:.40}")
    for name in columns:
        if not isinstance(fields.get(name), str):
            found = f"{fields[name]!r:.40}" if name in fields else f"nothing{did_you_mean(name, fields)}"
            raise ValueError(f"expected a text in {name!r}, found {found}")
    return [fields[name] for name in columns]


def _lines(file: str, ending: str | None) -> Iterator[tuple[int, tuple[bytes, ...]]]:
    """The lines of a file, each with its number, and with that of the file of targets, if there is one."""
    paths = [Path(file)] if ending is None else [Path(file), Path(file).with_suffix(ending)]
    with ExitStack() as stack:
        try:
            streams = [stack.enter_context(path.open("rb")) for path in paths]
            for number, lines in enumerate(zip_longest(*streams, fillvalue=b""), start=1):
                if b"" in lines:  # a blank line has its end in it
                    short, long = sorted(paths, key=lambda path: len(lines[paths.index(path)]))
                    raise DataError(f"{short} ends after {number - 1} lines, and {long}, beside which it stands, does not")
                mark = b"\xef\xbb\xbf" if number == 1 else b""
                yield number, tuple(line.removeprefix(mark).strip(b"\r\n") for line in lines)
        except OSError as error:
            raise DataError(f"{error.filename or file} cannot be read: {error.strerror}") from None


__all__ = ["TextPairs", "read_pairs"]
