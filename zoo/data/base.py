"""What all data parts share: three sets of examples, and the checks that they can be learned from."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import Dataset

from zoo.config import Config
from zoo.config.base import Count, PositiveInt
from zoo.data.broken import Tally
from zoo.data.loader import Loader, make_loader, stacked
from zoo.data.rows import Batch as Batch
from zoo.data.rows import Example
from zoo.data.rows import Examples as Examples
from zoo.errors import DataError

SplitName = Literal["train", "validation", "test"]
Share = Annotated[float, Field(ge=0, lt=1)]


class DataConfig(Config):
    """Fields of all data."""

    kind: ClassVar[str] = "data"

    batch_size: PositiveInt = 64
    """How many examples make a training batch."""
    workers: Count = 0
    """How many processes prepare batches; 0 prepares them in the training process. The batches are the same."""
    validation: Share = 0.0
    """Share of the training part that is kept out of training, to choose hyper-parameters and `best.ckpt` by.
    The test part is another one, and never seen before the end."""


class FilesConfig(DataConfig):
    """Fields of data that are read from files of the user's."""

    test: Share | None = None
    """Share of all examples that is kept out as test part (default: a fifth, where the files name no test part).
    What is in it follows from the examples alone, so that it is the same in every run."""
    broken: Count = 10
    """How many examples of a part that cannot be read are left out, the first ones named, before they are an error."""

    @property
    def shares(self) -> dict[str, float]:
        """What is kept out by share where the files name no such part."""
        return {"test": 0.2 if self.test is None else self.test, "validation": self.validation}


class StreamConfig(FilesConfig):
    """Fields of data that may be larger than memory."""

    streaming: bool = False
    """Whether examples are read while they are used instead of being prepared first. An epoch then has no known
    length, so that a run needs `trainer.max_steps`."""
    buffer: PositiveInt = 1000
    """Among how many examples that lie ahead the next one of a stream is drawn at random."""


class Data:
    """Base of data parts: a part says what is in a `split`, and may `augment` training batches.

    A user's own part needs only `split`; everything else works for any dataset of dictionaries, be it one with a
    length and an index or an iterable. What an example of it draws at random, from Python's, numpy's or torch's
    generator, follows from seed, epoch and index, in whatever process it is made.
    """

    def __init__(self, config: DataConfig) -> None:
        self.config = config

    def split(self, name: SplitName) -> Dataset[Example]:
        """The examples of one part: dictionaries with a model's inputs and `labels`."""
        raise NotImplementedError(f"{type(self).__name__} does not say what is in its parts")

    def has(self, name: SplitName) -> bool:
        """Whether there is such a part; there may be no `validation`."""
        return name != "validation" or self.config.validation > 0

    def augment(self, batch: Batch) -> Batch:
        """Changes a training batch at random; runs where the model is. By default it changes nothing."""
        return batch

    def collate(self, examples: list[Example]) -> Batch:
        """Makes a batch of examples: their tensors side by side."""
        return stacked(examples)

    def keep(self, folder: Path) -> None:
        """Leaves in a folder what a model is used with elsewhere, such as a tokenizer; most data need nothing."""

    def recall(self, folder: Path | None) -> None:
        """Takes from a folder what `keep` left there, if it did, instead of making it anew."""

    @property
    def class_names(self) -> list[str] | None:
        """What the labels 0, 1, ... mean; None where nobody says."""
        return None

    @property
    def place(self) -> str:
        """What messages call these data."""
        return f"data {getattr(self.config, 'type', type(self).__name__)!r}"

    @cached_property
    def tally(self) -> Tally:
        """Which examples could not be read so far."""
        return Tally(self.place, getattr(self.config, "broken", 0))

    def loader(self, name: SplitName, *, seed: int = 0, skip: int = 0, shard: tuple[int, int] | None = None) -> Loader:
        """Batches of one part: shuffled for training, else in order.

        Each iteration of a training loader is the next epoch, unless `loader.sampler.set_epoch` says which; Lightning
        calls that. Nothing is drawn from the global generators.

        Args:
            seed: order and random changes of the examples follow from it and the epoch alone.
            skip: how many batches the first iteration leaves out, without making them.
            shard: rank and number of processes that train together, each with its share of every
                `number * batch_size` examples (default: those of torch.distributed, else a single one).

        Raises:
            DataError: the part is empty, at once or, for a stream, when that is found out; later, when there are
                too many examples that cannot be read.
        """
        dataset = self.split(name)
        if hasattr(dataset, "__len__") and len(dataset) == 0:
            raise DataError(f"{self.place}: its {name} part is empty")
        return make_loader(
            dataset,
            batch_size=self.config.batch_size if name == "train" else 4 * self.config.batch_size,
            workers=self.config.workers,
            collate=self.collate,
            tally=self.tally,
            part=name,
            seed=seed,
            skip=skip,
            shard=shard,
        )

    def check(self, name: SplitName, classes: int | None = None) -> None:
        """Looks through a part before it is used, as far as that costs no reading of files.

        Args:
            classes: how many the model's head tells apart, where it has any.

        Raises:
            DataError: no examples, values that are no numbers, classes or labels that the head does not have.
        """
        names, dataset = self.class_names, self.split(name)
        if classes is not None and names is not None and len(names) != classes:
            some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            raise DataError(f"{self.place}: its {len(names)} classes ({some}) do not fit the head's {classes}")
        if isinstance(dataset, Examples):
            labels = classes if "labels" in dataset.tensors else None
            check(dataset, labels, f"{self.place}, {name} part")
        elif hasattr(dataset, "__len__") and len(dataset) == 0:
            raise DataError(f"{self.place}: its {name} part is empty")


def check(examples: Examples, classes: int | None, place: str) -> None:
    """Raises a DataError unless the examples can be learned from.

    Args:
        classes: how many the model's head has; labels are 0 to classes - 1. None looks at no labels.
        place: what the error calls these examples.
    """
    if len(examples) == 0:
        raise DataError(f"{place}: there are no examples")
    for name, tensor in examples.tensors.items():
        if len(tensor) != len(examples):
            raise DataError(f"{place}: {len(tensor)} {name} for {len(examples)} examples")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).flatten(1).any(1).nonzero()[0]) if tensor.ndim > 1 else 0
            raise DataError(f"{place}: {name} of example {bad} are not all finite numbers")
    if classes is not None:
        check_labels(examples.tensors["labels"], classes, place)


def check_labels(labels: Tensor, classes: int, place: str) -> None:
    """Raises a DataError for a label that is none of 0 to classes - 1."""
    wrong = ((labels < 0) | (labels >= classes)).nonzero()
    if len(wrong):
        first = int(wrong[0])
        raise DataError(
            f"{place}: label {int(labels[first])} of example {first} is none of the head's classes, 0 to {classes - 1}"
        )
