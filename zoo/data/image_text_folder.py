"""Pictures in a folder, with captions in text files beside them or in a table."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from zoo.data.base import SplitName
from zoo.data.broken import Broken
from zoo.data.captioned import CaptionedConfig, CaptionedData, said
from zoo.data.rows import Example, Row, Rows
from zoo.data.shares import part_of
from zoo.errors import DataError, did_you_mean, one_of
from zoo.extras import require

TABLES = ("captions.csv", "captions.tsv", "captions.jsonl")
"""What a table of captions is called where nobody says."""


class ImageTextFolder(CaptionedData):
    """Pictures in folders of the user's, each with one caption or several.

    The captions of `cat.jpg` are the lines of `cat.txt` beside it; or a table in the folder names pictures and says their
    captions, several rows (or, in JSON, a list) for a picture with several. Either the pictures lie anywhere below `path`,
    or below `path/train`, beside which `validation` and `test` may stand, each with a table of its own if it has one. What
    has no folder of its own is kept out of the training part by the names of pictures, so that the parts are the same in
    every run, whatever is added.
    Shapes: pixel_values (batch, channels, height, width), input_ids and attention_mask (batch, tokens).
    """

    class Config(CaptionedConfig):
        """Config of `image-text-folder` data."""

        type: Literal["image-text-folder"] = "image-text-folder"
        path: str
        """The folder."""
        table: str | None = None
        """The table of captions, a .csv, .tsv or .jsonl file within the folder (default: `captions.csv`, `.tsv` or `.jsonl`
        if there is one, else text files beside the pictures)."""
        name_column: str = "name"
        """The column of the table that says which picture, as a path within the folder."""
        caption_column: str = "caption"
        """The column that holds the caption."""

    config: Config

    def has(self, name: SplitName) -> bool:
        return name == "train" or self._folder(name) is not None or self.config.shares[name] > 0

    def split(self, name: SplitName) -> Rows:
        """The pairs of one part."""
        return Rows(self._parts[name], partial(self.read, training=name == "train"))

    def captions(self, row: Row) -> list[str]:
        if row["problem"]:
            raise Broken(row["place"], row["problem"])
        return said(row["captions"], row["place"])

    def read(self, row: Row, training: bool) -> Example:
        """An example of what is stored of it."""
        return self.captioned({"path": row["image"], "bytes": None}, self.captions(row), training)

    @cached_property
    def _home(self) -> Path:
        home = Path(self.config.path).expanduser()
        if not home.is_dir():
            raise DataError(f"{self.place}: path: {home} is no folder")
        lone = [name for name in ("validation", "test") if (home / name).is_dir() and not (home / "train").is_dir()]
        if lone:
            raise DataError(f"{self.place}: {home} has a folder {lone[0]!r} but none called 'train'")
        return home

    def _folder(self, name: str) -> Path | None:
        """The folder of a part, if it has one."""
        folder = self._home / name
        return folder if (self._home / "train").is_dir() and folder.is_dir() else None

    @cached_property
    def _parts(self) -> dict[SplitName, Any]:
        """The pairs of each part."""
        rows = list(self._listed(self._folder("train") or self._home))
        shares = dict(self.config.shares)
        parts: dict[SplitName, list[Row]] = {}
        for name in ("test", "validation"):
            folder = self._folder(name)
            if folder is None:
                continue
            if getattr(self.config, name):
                given = f"`{name}: {getattr(self.config, name)}`"
                raise DataError(f"{self.place}: {folder} holds the {name} part, so that {given} has no meaning; leave it out")
            parts[name], shares[name] = list(self._listed(folder)), 0.0
        for row in rows:
            part = part_of(row["key"].encode(), shares["test"], shares["validation"])
            parts.setdefault(part, []).append(row)
        return {name: self._stored(parts.get(name, [])) for name in ("train", "validation", "test")}

    def _stored(self, rows: list[Row]) -> Any:
        datasets = require("datasets", "train", self.place)
        text = datasets.Value("string")
        features = {"image": text, "captions": [text], "place": text, "problem": text}
        columns = {name: [row[name] for row in rows] for name in features}
        return datasets.Dataset.from_dict(columns, features=datasets.Features(features))

    def _listed(self, folder: Path) -> Iterator[Row]:
        """The pairs of a folder; a part of the folder is never an empty one."""
        table = self._table(folder)
        pictures = list(self._pictures(folder)) if table is None else []
        if table is None and not pictures:
            raise DataError(f"{self.place}: {folder} holds no pictures")
        if table is None and not any(Path(picture).with_suffix(".txt").is_file() for picture in pictures):
            expected = f"a text file beside each, such as {Path(pictures[0]).stem}.txt, or a table {one_of(TABLES)}"
            raise DataError(f"{self.place}: {folder} holds pictures without captions; expected {expected}")
        rows = self._beside(folder, pictures) if table is None else self._told(folder, table)
        first = next(rows, None)
        if first is None:
            raise DataError(f"{self.place}: {table} names no pictures")
        yield first
        yield from rows

    def _table(self, folder: Path) -> Path | None:
        """The table of captions of a folder; None where there is none."""
        given = self.config.table
        if given is None:
            return next((folder / name for name in TABLES if (folder / name).is_file()), None)
        path = folder / given
        if path.suffix.lower() not in (".csv", ".tsv", ".jsonl"):
            raise DataError(f"{self.place}: table: {given!r} is no table; expected a .csv, .tsv or .jsonl file")
        if not path.is_file():
            near = [each.name for each in folder.iterdir() if each.suffix.lower() in (".csv", ".tsv", ".jsonl")]
            raise DataError(f"{self.place}: table: there is no file {path}{did_you_mean(given, near)}")
        return path

    def _pictures(self, folder: Path) -> Iterator[str]:
        """The paths of all pictures below a folder, in their order; hidden ones are none."""
        endings = set(require("PIL.Image", "train", self.place).registered_extensions())
        for place, folders, names in os.walk(folder):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                if os.path.splitext(name)[1].lower() in endings and not name.startswith("."):
                    yield os.path.join(place, name)

    def _beside(self, folder: Path, pictures: list[str]) -> Iterator[Row]:
        """Pictures with the lines of the text files beside them."""
        for picture in pictures:
            texts, lines, problem = Path(picture).with_suffix(".txt"), [], ""
            try:
                lines = texts.read_text(encoding="utf-8-sig").splitlines()
            except FileNotFoundError:
                problem = f"there is no caption {texts.name} beside it"
            except (OSError, UnicodeDecodeError) as error:
                problem = f"its caption {texts.name} is no text in UTF-8: {getattr(error, 'reason', None) or error}"
            key = Path(picture).relative_to(folder).as_posix()
            yield {"key": key, "image": picture, "captions": lines, "place": picture, "problem": problem}

    def _told(self, folder: Path, table: Path) -> Iterator[Row]:
        """Pictures that a table names, each once with all its captions."""
        found: dict[str, dict[str, Any]] = {}
        for line, name, captions, problem in self._lines(table):
            place = f"{table}:{line}"
            if not problem and (PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts):
                problem = f"{name!r} leads out of the folder"
            if problem:
                found[place] = {"key": place, "image": "", "captions": [], "place": place, "problem": problem}
                continue
            row = {"key": name, "image": str(folder / name), "captions": [], "place": place, "problem": ""}
            found.setdefault(name, row)["captions"] += captions
        yield from found.values()

    def _lines(self, table: Path) -> Iterator[tuple[int, str, list[str], str]]:
        """Of each line of a table its number, the picture's name, the captions, and what is wrong with it."""
        try:
            with table.open(encoding="utf-8-sig", newline="") as file:
                if table.suffix.lower() == ".jsonl":
                    parsed = ((number, _fields(line)) for number, line in enumerate(file, 1) if line.strip())
                else:
                    reader = csv.DictReader(file, delimiter="\t" if table.suffix.lower() == ".tsv" else ",")
                    self._check(table, reader.fieldnames or [])
                    parsed = ((reader.line_num, fields) for fields in reader)
                for number, fields in parsed:
                    yield (number, *self._picked(fields))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            reason = getattr(error, "strerror", None) or getattr(error, "reason", None) or error
            raise DataError(f"{self.place}: {table} cannot be read: {reason}") from None

    def _picked(self, fields: Any) -> tuple[str, list[str], str]:
        if not isinstance(fields, dict):
            return "", [], "the line is no JSON object"
        name, value = fields.get(self.config.name_column), fields.get(self.config.caption_column)
        if not isinstance(name, str) or not name:
            return "", [], f"no {self.config.name_column!r} says which picture"
        captions = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(each, str) for each in captions):
            return "", [], f"the {self.config.caption_column!r} of {name!r} is no text"
        return name, captions, ""

    def _check(self, table: Path, columns: Any) -> None:
        for field in ("name_column", "caption_column"):
            wanted = getattr(self.config, field)
            if wanted not in columns:
                hint = did_you_mean(wanted, columns) or f"; expected {one_of(columns)}"
                raise DataError(f"{self.place}: {field}: {table} has no column {wanted!r}{hint}")


def _fields(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
