"""Images in a folder for each class."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

from zoo.data.base import SplitName
from zoo.data.image import ImageConfig, ImageData, label_of
from zoo.data.rows import Example, Row, Rows
from zoo.errors import DataError, did_you_mean
from zoo.extras import require


class ImageFolder(ImageData):
    """Images in folders of the user's, one folder for each class.

    Either `path/train/CLASS/*.png`, beside which `validation` and `test` may stand, or `path/CLASS/*.png`. What has no
    folder of its own is kept out of the training images, the same images in every run, of each class its share. Folders
    inside of a class folder belong to the class; images are read when they are needed.
    Shapes: pixel_values (batch, channels, height, width), labels (batch,), numbered in the alphabetical order of the folders.
    """

    class Config(ImageConfig):
        """Config of `image-folder` data."""

        type: Literal["image-folder"] = "image-folder"
        path: str
        """The folder."""

        @property
        def classes(self) -> int | None:
            """How many class folders there are; None where the folder cannot be read."""
            try:
                return len(class_folders(training_folder(Path(self.path).expanduser()))) or None
            except OSError:
                return None

    config: Config

    @property
    def class_names(self) -> list[str]:
        """The names of the class folders."""
        return self._names

    def has(self, name: SplitName) -> bool:
        return name == "train" or self._folder(name) is not None or self._share(name) > 0

    def split(self, name: SplitName) -> Rows:
        """The images of one part."""
        return Rows(self._parts[name], partial(self.read, training=name == "train"))

    def read(self, row: Row, training: bool) -> Example:
        """An example of what is stored of it."""
        return {
            "pixel_values": self.pixels(row["image"], training),
            "labels": label_of(row["label"], len(self._names), self.place),
        }

    @cached_property
    def _home(self) -> Path:
        home = Path(self.config.path).expanduser()
        if not home.is_dir():
            raise DataError(f"{self.place}: path: {home} is no folder")
        train = training_folder(home)
        lone = [name for name in ("validation", "test") if train == home and (home / name).is_dir()]
        if lone:
            raise DataError(f"{self.place}: {home} has a folder {lone[0]!r} but none called 'train'")
        return home

    @cached_property
    def _names(self) -> list[str]:
        train = training_folder(self._home)
        names = class_folders(train)
        if not names:
            raise DataError(f"{self.place}: {train} has no folders, where one for each class was expected")
        return names

    @cached_property
    def _parts(self) -> dict[SplitName, Any]:
        """The paths and labels of each part."""
        parts: dict[SplitName, Any] = {"train": self._listed(training_folder(self._home))}
        for name in ("test", "validation"):
            folder, share = self._folder(name), self._share(name)
            if folder is None:
                parts["train"], parts[name] = self._apart(parts["train"], share)
            elif getattr(self.config, name):
                given = f"`{name}: {getattr(self.config, name)}`"
                raise DataError(f"{self.place}: {folder} holds the {name} part, so that {given} has no meaning; leave it out")
            else:
                parts[name] = self._listed(folder)
        return parts

    def _folder(self, name: str) -> Path | None:
        """The folder of a part, if it has one."""
        folder = self._home / name
        return folder if training_folder(self._home) != self._home and folder.is_dir() else None

    def _share(self, name: str) -> float:
        return self.config.shares[name]

    def _listed(self, folder: Path) -> Any:
        """The images below the class folders of `folder`, as a `datasets.Dataset`."""
        datasets = require("datasets", "train", self.place)
        endings = set(require("PIL.Image", "train", self.place).registered_extensions())
        paths: list[str] = []
        labels: list[int] = []
        for name in class_folders(folder):
            if name not in self._names:
                hint = did_you_mean(name, self._names) or f"; those of the training part are {', '.join(self._names[:12])}"
                raise DataError(f"{self.place}: {folder / name} is no class of the training part{hint}")
            images = sorted(path for path in _files(folder / name) if os.path.splitext(path)[1].lower() in endings)
            if not images:
                raise DataError(f"{self.place}: {folder / name} holds no images")
            paths += images
            labels += [self._names.index(name)] * len(images)
        features = {"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=self._names)}
        return datasets.Dataset.from_dict({"image": paths, "label": labels}, features=datasets.Features(features))

    def _apart(self, rows: Any, share: float) -> tuple[Any, Any]:
        """`rows` without a share of each class, and that share; drawn the same way every time."""
        if share == 0:
            return rows, rows.select([])
        try:
            parts = rows.train_test_split(test_size=share, stratify_by_column="label", seed=0)
        except ValueError as error:  # too few images of a class
            raise DataError(f"{self.place}: {len(rows)} images cannot be parted by classes: {error}") from None
        return parts["train"], parts["test"]


def training_folder(home: Path) -> Path:
    """Where the class folders of the training part are."""
    return home / "train" if (home / "train").is_dir() else home


def class_folders(folder: Path) -> list[str]:
    """The names of the folders in `folder`, sorted, without hidden ones."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _files(folder: Path) -> Iterator[str]:
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (os.path.join(place, name) for name in names if not name.startswith("."))
