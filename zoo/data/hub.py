"""Data sets of the Hugging Face Hub, or of one's own in the same formats."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

from zoo.config import Problem
from zoo.config.base import PositiveInt
from zoo.data.base import Batch, SplitName, StreamConfig
from zoo.data.broken import Broken
from zoo.data.captioned import CaptionedData, field_problems, model_problems, said
from zoo.data.image import ImageConfig, ImageData, label_of
from zoo.data.loader import stacked
from zoo.data.rows import Example, Row, Rows, Stream
from zoo.data.shares import part_of
from zoo.data.text import TextConfig, TextData
from zoo.errors import DataError, ZooError, did_you_mean, one_of
from zoo.extras import require

FORMATS = {".parquet": "parquet", ".arrow": "arrow", ".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json"}
"""What reads a single file of one's own."""


class Hub(CaptionedData):
    """Images, texts or pairs of both that `datasets` reads: a data set of the Hugging Face Hub, or a folder or file of
    parquet or the like.

    A split called `validation` or `test` is that part; what there is none of is kept out of the training split by what
    an example holds, so that streaming or not the parts are the same. Data sets that bring code of their own are refused.
    A text column beside an image column makes pairs; it may hold a list of captions for each image. Of tar files ("shards"
    of webdataset) columns are the endings of the files, such as `jpg` and `txt`.
    Shapes: pixel_values (batch, channels, height, width), or input_ids and attention_mask (batch, tokens), or all three;
    with a label column, labels (batch,).
    """

    class Config(ImageConfig, TextConfig, StreamConfig):
        """Config of `hub` data."""

        type: Literal["hub"] = "hub"
        path: str
        """The id on the Hub, such as `ylecun/mnist`, or a folder or file."""
        name: str | None = None
        """Which of several data sets under that id."""
        revision: str | None = None
        """Which version of it: a commit, a branch or a tag (default: the newest)."""
        image_column: str | None = None
        """The column that holds images."""
        text_column: str | None = None
        """The column that holds texts, or the captions of the images."""
        label_column: str | None = None
        """The column that holds the classes, as whole numbers."""
        classes: PositiveInt | None = None
        """How many classes there are (default: as many as the label column names)."""
        train_split: str = "train"
        """The split that is trained on."""
        validation_split: str | None = None
        """The split that is the validation part (default: `validation`, if there is one that is not used otherwise)."""
        test_split: str | None = None
        """The split that is the test part (default: `test`, if there is one that is not used otherwise)."""

        def _own_problems(self) -> Iterator[Problem]:
            yield from super()._own_problems()
            if self.image_column is None and self.text_column is None:
                yield (), "expected the name of a column as `image_column`, as `text_column`, or as both"
                return
            if self.pairs:
                yield from field_problems(self)
                return
            unused, what = (TextConfig, "images") if self.image_column is not None else (ImageConfig, "texts")
            shared = set(StreamConfig.model_fields)
            for field in [name for name in unused.model_fields if name not in shared]:
                if getattr(self, field) != unused.model_fields[field].get_default(call_default_factory=True):
                    yield (field,), f"this has no meaning for data of {what}; leave it out"

        def problems(self, **context: Any) -> Iterator[Problem]:
            if self.pairs:
                yield from model_problems(self, context["model"])
            else:
                yield from (ImageConfig if self.image_column is not None else TextConfig).problems(self, **context)

        @property
        def pairs(self) -> bool:
            """Whether an example is an image with a text."""
            return self.image_column is not None and self.text_column is not None

    config: Config

    @property
    def text_column(self) -> str:
        return self.config.text_column or ""

    @property
    def label_column(self) -> str | None:
        return self.config.label_column

    @property
    def class_names(self) -> list[str] | None:
        """What the label column calls the classes."""
        return None if self.config.label_column is None else getattr(self._features[self.config.label_column], "names", None)

    @property
    def classes(self) -> int | None:
        names, given = self.class_names, self.config.classes
        if names is not None and given not in (None, len(names)):
            found = f"column {self.config.label_column!r} names {len(names)}"
            raise DataError(f"{self.place}: classes: {given} are expected, but {found}")
        return given if names is None else len(names)

    def has(self, name: SplitName) -> bool:
        return self._split_of[name] is not None or self._shares[name] > 0

    def split(self, name: SplitName) -> Rows | Stream:
        """The examples of one part."""
        classes = None if self.config.label_column is None else self.classes
        read = partial(self.read, training=name == "train", classes=classes)
        return Stream(partial(self._streamed, name), read) if self.config.streaming else Rows(self._rows[name], read)

    def read(self, row: Row, training: bool, classes: int | None) -> Example:
        """An example of a stored row."""
        config = self.config
        if config.pairs:
            example = dict(self.captioned(row[str(config.image_column)], self.captions(row), training))
        elif config.image_column is not None:
            example = {"pixel_values": self.pixels(row[config.image_column], training)}
        elif isinstance(text := row[str(config.text_column)], str):
            example = dict(self.tokens(text))
        else:
            raise Broken("", f"column {config.text_column!r} holds no text")
        if config.label_column is not None:
            example["labels"] = label_of(row[config.label_column], classes, self.place)
        return example

    def captions(self, row: Row) -> list[str]:
        return said(row[str(self.config.text_column)], "")

    def augment(self, batch: Batch) -> Batch:
        return batch if self.config.image_column is None else ImageData.augment(self, batch)

    def collate(self, examples: list[Example]) -> Batch:
        return stacked(examples) if self.config.text_column is None else TextData.collate(self, examples)

    @cached_property
    def _splits(self) -> Mapping[str, Any]:
        """All splits, by name."""
        return load(self.config, self.place)

    @cached_property
    def _split_of(self) -> dict[SplitName, str | None]:
        """The split that each part is; None for a share of the training split."""
        config, known = self.config, list(self._splits)
        found: dict[SplitName, str | None] = {"train": config.train_split}
        wanted: list[tuple[SplitName, str | None, float | None]] = [
            ("test", config.test_split, config.test),
            ("validation", config.validation_split, config.validation),
        ]
        for name, given, share in wanted:
            if given is not None and share:
                raise DataError(f"{self.place}: `{name}` has no meaning beside `{name}_split`; leave one of them out")
            taken = {config.train_split, config.validation_split, config.test_split}
            found[name] = given or (name if not share and name in known and name not in taken else None)
        for name, split in found.items():
            if split is not None and split not in known:
                hint = did_you_mean(split, known) or f"; expected {one_of(known)}"
                raise DataError(f"{self.place}: {name}_split: {config.path} has no split {split!r}{hint}")
        return found

    @cached_property
    def _shares(self) -> dict[SplitName, float]:
        """Which share of the training split each part is that is no split itself."""
        return {name: self.config.shares[name] for name, split in self._split_of.items() if split is None}

    @cached_property
    def _features(self) -> Mapping[str, Any]:
        """What the columns of the training split hold; None for one of which that is not known before it is read.

        Raises:
            DataError: a column that there is not, or that holds something else.
        """
        datasets, config = require("datasets", "train", self.place), self.config
        rows = self._splits[str(self._split_of["train"])]
        features = rows.features or dict.fromkeys(next(iter(rows), {}))
        for field in ("image", "text", "label"):
            column = getattr(config, f"{field}_column")
            if column is not None and column not in features:
                hint = did_you_mean(column, features) or f"; expected {one_of(features)}"
                raise DataError(f"{self.place}: {field}_column: {config.path} has no column {column!r}{hint}")
            found = features.get(column)
            dtype = getattr(found, "dtype", "")
            fits = {
                "image": isinstance(found, datasets.Image) or dtype in ("binary", "large_binary", "string"),
                "text": dtype in ("string", "large_string") or (config.pairs and _inner(found) in ("string", "large_string")),
                "label": "int" in dtype or dtype == "bool",
            }
            if found is not None and not fits[field]:
                wanted = {"image": "images", "text": "texts", "label": "classes as whole numbers"}[field]
                holds = f"{column!r} holds {dtype or type(found).__name__}, not {wanted}"
                raise DataError(f"{self.place}: {field}_column: {holds}")
        return features

    def _raw(self, name: SplitName) -> Any:
        """The split that a part is or is taken from: the columns that are used, images not yet decoded."""
        config, rows = self.config, self._splits[self._split_of[name] or self.config.train_split]
        named = (config.image_column, config.text_column, config.label_column)
        columns = [column for column in named if column in self._features]
        missing = [column for column in columns if column not in (rows.column_names or columns)]
        if missing:
            raise DataError(f"{self.place}: split {self._split_of[name]!r} has no column {missing[0]!r}")
        if config.image_column is not None:
            rows = rows.cast_column(config.image_column, require("datasets", "train", self.place).Image(decode=False))
        return rows.select_columns(columns)

    @cached_property
    def _rows(self) -> dict[SplitName, Any]:
        parts: dict[SplitName, Any] = {name: self._raw(name) for name, split in self._split_of.items() if split is not None}
        if not any(self._shares.values()):
            return parts | {name: parts["train"].select([]) for name in self._shares}
        places: dict[SplitName, list[int]] = {"train": [], **{name: [] for name in self._shares}}
        for index, row in enumerate(parts["train"]):
            places[self._part_of(row)].append(index)
        return parts | {name: parts["train"].select(chosen) for name, chosen in places.items()}

    def _streamed(self, name: SplitName, order: int | None) -> Any:
        rows = self._raw(name)
        if self._split_of[name] is None or (name == "train" and self._shares):
            rows = rows.filter(lambda row: self._part_of(row) == name)
        return rows if order is None else rows.shuffle(seed=order, buffer_size=self.config.buffer)

    def _part_of(self, row: Row) -> SplitName:
        """The part of a row of the training split."""
        stored = row[self.config.image_column or str(self.config.text_column)]
        content = (stored.get("bytes") or stored.get("path")) if isinstance(stored, Mapping) else stored
        content = content.encode() if isinstance(content, str) else content or b""
        return part_of(content, self._shares.get("test", 0.0), self._shares.get("validation", 0.0))


def _inner(feature: Any) -> str:
    """The type of what a list holds; nothing where it is no list."""
    inner = feature[0] if isinstance(feature, list) and feature else getattr(feature, "feature", None)
    return str(getattr(inner, "dtype", ""))


def load(config: Hub.Config, place: str) -> Mapping[str, Any]:
    """The splits of a data set, by name.

    Raises:
        DataError: it cannot be found or read, or brings code.
    """
    datasets = require("datasets", "train", place)
    path = Path(config.path).expanduser()
    options: dict[str, Any] = {"streaming": config.streaming}
    try:
        if not path.exists():
            found = datasets.load_dataset(config.path, config.name, revision=config.revision, **options)
        elif config.revision is not None:
            raise DataError(f"{place}: revision: {path} is a folder or file, which has no versions")
        elif config.name is not None and path.is_file():
            raise DataError(f"{place}: name: {path} is a single file, which holds one data set")
        elif path.suffix == ".py" or (path / f"{path.name}.py").is_file():
            raise DataError(f"{place}: path: {path} brings code of its own, which is never run")
        elif path.is_file():
            if path.suffix not in FORMATS:
                raise DataError(f"{place}: path: {path} is no file of a known format; expected {one_of(FORMATS)}")
            separator = {"sep": "\t"} if path.suffix == ".tsv" else {}
            found = datasets.load_dataset(FORMATS[path.suffix], data_files=str(path), **options, **separator)
        elif (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            found = datasets.load_from_disk(str(path))
            found = found if isinstance(found, Mapping) else {"train": found}
            if config.streaming:
                found = {name: rows.to_iterable_dataset() for name, rows in found.items()}
        else:
            found = datasets.load_dataset(str(path), config.name, **options)
    except ZooError:
        raise
    except Exception as error:  # the library and what it reads with raise whatever they like
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise DataError(f"{place}: {config.path} cannot be loaded: {reason}") from None
    return found
