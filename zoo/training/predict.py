"""What a trained model says to inputs that nobody has answered yet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo import registry
from zoo.data.base import SplitName
from zoo.errors import ConfigError, DataError, InputError
from zoo.inspect.image import Picture, example_of, preparation, read_image
from zoo.training.evaluate import checked
from zoo.training.predict_target import answers, captions
from zoo.training.predict_text import FILLED, classify, fill, follow
from zoo.training.prediction import Prediction, likeliest
from zoo.training.way import Way, way

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")


def predict(
    source: str | Path,
    inputs: Sequence[str | Path] = (),
    *,
    task: str | None = None,
    data: Any = None,
    split: SplitName = "test",
    top: int | None = None,
    batch_size: int = 64,
) -> Iterator[Prediction]:
    """Classifies inputs, fills the masks in texts, says which tokens come next, or writes a text for a text or an image.

    Args:
        source: a run's folder, or what `zoo.load` takes.
        inputs: image files, folders of them, or test images of data (`digits:17`); for a model of texts, texts; without
            any, a part of the data is classified.
        task: which one, of a model that has several.
        data: the name, the fields or the config of data (default: those of the run).
        split: which part of them is classified where there are no inputs.
        top: how many answers for each input (default: three classes, five tokens, or one text).
        batch_size: how many inputs are classified at once.

    Raises:
        ConfigError: the model has another head, neither inputs nor data are named, or none of several tasks is.
        UnknownNameError: there is no such task.
        InputError, DataError: an input that cannot be read.
        WeightsError: the model cannot be read.
    """
    asked = way(source, task, data)
    model, config = asked.model, checked("data", asked.data) if asked.data is not None else None
    head: Any = model.config.head if model.config.type != "encoder-decoder" else None
    texts = [str(each) for each in inputs]
    kind = getattr(head, "type", None)
    if model.config.type == "encoder-decoder" or (asked.task_type == "prefix-language" and not asked.describes):
        options: Any = {"split": split, "top": top or 1, "batch_size": batch_size, "home": asked.home}
        yield from answers(model, source, texts, config, **options)
    elif kind == "language-model" and asked.describes:
        if not inputs:
            raise ConfigError(f"{source}: say what to describe: image files, folders of them, or test images as in digits:17")
        pictures = ((name, picture.pixels) for name, picture in pictures_of(asked, image_files(inputs), source))
        yield from captions(model, source, pictures, config, top=top or 1, batch_size=batch_size)
    elif kind in (*FILLED, "language-model"):
        answer = fill if kind in FILLED else follow
        yield from answer(model, source, texts, config, top=top or 5, batch_size=batch_size)
    elif kind == "classifier" and head.classes:
        yield from _classes(asked, source, inputs, config, split, top or 3, batch_size)
    else:
        found = "none" if head is None else repr(kind)
        expected = "'classifier', 'masked-language-model' or 'language-model'"
        raise ConfigError(f"{source}: this needs a head of type {expected}, not {found}")


def _classes(
    asked: Way, source: str | Path, inputs: Sequence[str | Path], config: Any, split: SplitName, top: int, size: int
) -> Iterator[Prediction]:
    model, head = asked.model, asked.model.config.head
    part = registry.make(config) if config is not None else None
    names = head.labels or (None if part is None else part.class_names) or [str(number) for number in range(head.classes)]
    if len(names) != head.classes:
        raise ConfigError(f"{source}: the data name {len(names)} classes, and the head has {head.classes}")
    if inputs and len(getattr(model, "front", ())):
        raise ConfigError(f"{source}: task {asked.name!r} reads {' and '.join(model.inputs)}, of which an input gives one")
    if inputs and asked.images is None:
        texts = [str(each) for each in inputs]
        yield from classify(model, source, texts, names, config, top=top, batch_size=size)
    elif inputs:
        pictures = pictures_of(asked, image_files(inputs), source)
        while batch := list(islice(pictures, size)):
            pixels = torch.cat([picture.pixels for _, picture in batch])
            labels = [None if picture.label is None else names[picture.label] for _, picture in batch]
            yield from _answers(model, {"pixel_values": pixels}, [name for name, _ in batch], labels, names, top)
    elif part is not None:
        part.recall(asked.home)
        yield from _part(model, part, split, names, top)
    else:
        raise ConfigError(f"{source} belongs to no run, so say what to classify: files, folders, or --data NAME")


def pictures_of(asked: Way, inputs: Iterator[str | Path], source: str | Path) -> Iterator[tuple[str, Picture]]:
    """Images with their names, as the model reads them."""
    home = Path(source) / "model" if (Path(source) / "model").is_dir() else Path(source)
    prepared = preparation(home if home.is_dir() else home.parent, asked.name)
    for each in inputs:
        if isinstance(each, Path):
            yield str(each), read_image(each, asked.images.embedding, prepared)
        else:
            yield str(each), example_of(each, asked.images)


def _part(model: Any, part: Any, split: SplitName, names: Sequence[str], top: int) -> Iterator[Prediction]:
    number = 0
    for batch in part.loader(split):
        labels = batch.pop("labels", None)
        size = len(next(iter(batch.values())))
        words = [None] * size if labels is None else [names[label] for label in labels.tolist()]
        yield from _answers(model, batch, [str(number + index) for index in range(size)], words, names, top)
        number += size


@torch.inference_mode()
def _answers(
    model: Any, inputs: dict[str, Tensor], what: list[str], labels: Sequence[str | None], names: Sequence[str], top: int
) -> list[Prediction]:
    logits = model(**{name: tensor.to(model.device) for name, tensor in inputs.items()}).logits
    return [Prediction(name, likeliest(row, names.__getitem__, top), label) for name, row, label in zip(what, logits, labels)]


def image_files(inputs: Iterable[str | Path]) -> Iterator[str | Path]:
    """The files that are named, those in folders, and words such as `digits:17`, as soon as each is asked for.

    Raises:
        InputError, DataError: there is no such file, or a folder without images.
    """
    for each in inputs:
        path = Path(each)
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in ENDINGS)
            if not found:
                raise DataError(f"{path}: no images; expected files ending in {', '.join(ENDINGS)}")
            yield from found
        elif ":" in str(each) and not path.exists() and str(each).partition(":")[0] in registry.list_components("data"):
            yield str(each)
        elif path.is_file():
            yield path
        else:
            raise InputError(f"{each}: no such file or folder")


__all__ = ["Prediction", "image_files", "pictures_of", "predict"]
