"""Pictures and captions in tar files, as the library webdataset lays them out."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from functools import cached_property, partial
from itertools import groupby
from typing import Any, Literal

from zoo.data.base import SplitName
from zoo.data.broken import Broken
from zoo.data.captioned import CaptionedConfig, CaptionedData, said
from zoo.data.paths import PARTS, PathsConfig, PathsData
from zoo.data.rows import Example, Row, Rows, Stream
from zoo.data.shares import part_of
from zoo.errors import DataError
from zoo.extras import require

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm")
"""Endings of pictures."""
COLUMNS = {"shard": "string", "key": "string", "image": "int64", "image_size": "int64", "text": "int64", "text_size": "int64"}


class WebDataset(PathsData, CaptionedData):
    """Pictures with captions in tar files ("shards"): neighbouring files of one name up to its first dot are an example.

    So `0017.jpg` and `0017.txt` are a pair. Nothing is unpacked, and of all files in a shard only the picture and the
    caption are read, the one as an image and the other as text or JSON: what else lies there, such as pickles or weights,
    is never opened. Shards are plain tar files, whose headers are read first, so that examples are met in a truly random
    order; with `streaming` they are read from front to back instead. What has no files of its own is kept out of the
    training files by the names of examples. Format: https://github.com/webdataset/webdataset. Shards on the Hub are `hub`
    data.
    Shapes: pixel_values (batch, channels, height, width), input_ids and attention_mask (batch, tokens).
    """

    class Config(CaptionedConfig, PathsConfig):
        """Config of `webdataset` data."""

        type: Literal["webdataset"] = "webdataset"
        caption: str = "txt"
        """The ending of the files that hold captions; what ends in `json` is read as JSON, all else as one caption a line."""
        caption_key: str = "caption"
        """Where in a JSON object the caption stands, a text or a list of texts."""

    config: Config
    usual = "*.tar"

    def split(self, name: SplitName) -> Rows | Stream:
        """The pairs of one part."""
        read = partial(self.read, training=name == "train")
        if self.config.streaming:
            for part in PARTS:
                self.files(part)  # a path that leads nowhere is an error now, not after the training
            return Stream(partial(self._streamed, name), read)
        return Rows(self._rows[name], read)

    def captions(self, row: Row) -> list[str]:
        place = _place(row)
        if row["text"] < 0:
            raise Broken(place, f"there is no caption: no file with its name ends in .{self.config.caption}")
        stored, in_json = _stored(row["shard"], row["text"], row["text_size"], place), _is_json(self.config.caption)
        try:
            text = stored.decode("utf-8-sig")
            fields = json.loads(text) if in_json else {self.config.caption_key: text.splitlines()}
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "reason", None) or getattr(error, "msg", None) or error
            raise Broken(place, f"its .{self.config.caption} cannot be read: {reason}") from None
        if not isinstance(fields, dict) or self.config.caption_key not in fields:
            raise Broken(place, f"its .{self.config.caption} has no {self.config.caption_key!r}")
        return said(fields[self.config.caption_key], place)

    def read(self, row: Row, training: bool) -> Example:
        """An example of what is stored of it."""
        place = _place(row)
        if row["image"] < 0:
            raise Broken(place, "there is no picture with its name")
        captions = self.captions(row)
        image = {"path": place, "bytes": _stored(row["shard"], row["image"], row["image_size"], place)}
        return self.captioned(image, captions, training)

    @cached_property
    def _rows(self) -> dict[SplitName, Any]:
        datasets = require("datasets", "train", self.place)
        found = {}
        for name in PARTS:
            rows = list(pairs_of(self.files(name), self.config.caption, name, self.part_shares(name)))
            columns = {column: [row[column] for row in rows] for column in COLUMNS}
            found[name] = datasets.Dataset.from_dict(columns, features=self._features())
        return found

    def _streamed(self, name: SplitName, order: int | None) -> Any:
        datasets = require("datasets", "train", self.place)
        caption, shares = self.config.caption, self.part_shares(name)
        fields = {"shards": self.files(name), "caption": caption, "part": name, "shares": shares}
        rows = datasets.IterableDataset.from_generator(pairs_of, gen_kwargs=fields, features=self._features())
        return rows if order is None else rows.shuffle(seed=order, buffer_size=self.config.buffer)

    def _features(self) -> Any:
        datasets = require("datasets", "train", self.place)
        return datasets.Features({name: datasets.Value(dtype) for name, dtype in COLUMNS.items()})


def pairs_of(shards: list[str], caption: str, part: SplitName, shares: tuple[float, float] | None) -> Iterator[Row]:
    """Where the pairs of a part lie: first byte and size of picture and caption in a shard, -1 for what there is none of.

    Args:
        caption: the ending of captions.
        shares: of test and validation; None if all pairs are of one part.

    Raises:
        DataError: a shard that is no plain tar file, or has neither pictures nor captions.
    """
    for shard in shards:
        some = False
        for key, files in groupby(_files(shard), key=lambda file: file[0]):
            row = {"shard": shard, "key": key, "image": -1, "image_size": 0, "text": -1, "text_size": 0}
            for _, ending, start, size in files:
                column = "text" if ending == caption.lower() else "image" if ending in IMAGES else None
                if column is not None:
                    row |= {column: start, f"{column}_size": size}
            if row["image"] < 0 and row["text"] < 0:
                continue  # neither a picture nor a caption, such as a note about the shard
            some = True
            if shares is None or part_of(key.encode(), *shares) == part:
                yield row
        if not some:
            raise DataError(f"{shard}: holds neither pictures nor files that end in .{caption}")


def _files(shard: str) -> Iterator[tuple[str, str, int, int]]:
    """Name up to its first dot, ending, first byte and size of each file in a shard."""
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                folder, slash, name = member.name.rpartition("/")
                stem, _, ending = name.partition(".")
                if member.isreg() and not member.issparse() and stem:
                    yield folder + slash + stem, ending.lower(), member.offset_data, member.size
    except tarfile.TarError as error:
        reason = "it is compressed; expected a plain .tar file" if _packed(shard) else f"it is no whole tar file: {error}"
        raise DataError(f"{shard} cannot be read: {reason}") from None
    except OSError as error:
        raise DataError(f"{shard} cannot be read: {error.strerror or error}") from None


def _packed(shard: str) -> bool:
    with open(shard, "rb") as file:
        return file.read(3).startswith((b"\x1f\x8b", b"BZh", b"\xfd7z", b"\x28\xb5\x2f"))  # gzip, bzip2, xz, zstandard


def _stored(shard: str, start: int, size: int, place: str) -> bytes:
    try:
        with open(shard, "rb") as file:
            file.seek(start)
            content = file.read(size)
    except OSError as error:
        raise Broken(place, error.strerror or error) from None
    if len(content) < size:
        raise Broken(place, "the shard ends before it does")
    return content


def _is_json(ending: str) -> bool:
    return ending.lower().rpartition(".")[2] == "json"


def _place(row: Row) -> str:
    return f"{row['shard']}:{row['key']}"
