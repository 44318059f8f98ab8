"""What all data parts share: three sets of examples, and the checks that they can be learned from."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from zoo.config import Config
from zoo.config.base import Count, PositiveInt
from zoo.errors import DataError

Batch = dict[str, Tensor]
SplitName = Literal["train", "validation", "test"]


class DataConfig(Config):
    """Fields of all data."""

    kind: ClassVar[str] = "data"

    batch_size: PositiveInt = 64
    """How many examples make a training batch."""
    workers: Count = 0
    """How many processes prepare batches; 0 prepares them in the training process."""
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the training part that is kept out of training, to choose hyper-parameters and `best.ckpt` by.
    The test part is another one, and never seen before the end."""


class Examples(Dataset[Batch]):
    """Examples that lie in memory: tensors by the name of a model's input, and `labels`, equally long."""

    def __init__(self, **tensors: Tensor) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, index: Any) -> Batch:
        return {name: tensor[index] for name, tensor in self.tensors.items()}

    def __getitems__(self, indices: list[int]) -> Batch:
        return self[torch.as_tensor(indices)]  # a whole batch at once; torch's loader asks for this


class Data:
    """Base of data parts: a part says what is in a `split`, and may `augment` training batches.

    A user's own part needs only `split`; everything else works for any dataset of dictionaries.
    """

    def __init__(self, config: DataConfig) -> None:
        self.config = config

    def split(self, name: SplitName) -> Dataset[Batch]:
        """The examples of one part: dictionaries with a model's inputs and `labels`."""
        raise NotImplementedError(f"{type(self).__name__} does not say what is in its parts")

    def augment(self, batch: Batch) -> Batch:
        """Changes a training batch at random; runs where the model is. By default it changes nothing."""
        return batch

    def loader(self, name: SplitName) -> DataLoader[Batch]:
        """Batches of one part: shuffled for training, else in order.

        Raises:
            DataError: the part is empty.
        """
        dataset = self.split(name)
        if len(dataset) == 0:  # type: ignore[arg-type]
            raise DataError(f"data {getattr(self.config, 'type')!r}: its {name} part is empty")
        training = name == "train"
        return DataLoader(
            dataset,
            batch_size=self.config.batch_size if training else 4 * self.config.batch_size,
            shuffle=training,
            num_workers=self.config.workers,
            persistent_workers=self.config.workers > 0,
            collate_fn=_as_it_is if isinstance(dataset, Examples) else None,
        )


def check(examples: Examples, classes: int, place: str) -> None:
    """Raises a DataError unless the examples can be learned from.

    Args:
        classes: how many the model's head has; labels are 0 to classes - 1.
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
    check_labels(examples.tensors["labels"], classes, place)


def check_labels(labels: Tensor, classes: int, place: str) -> None:
    """Raises a DataError for a label that is none of 0 to classes - 1."""
    wrong = ((labels < 0) | (labels >= classes)).nonzero()
    if len(wrong):
        first = int(wrong[0])
        raise DataError(
            f"{place}: label {int(labels[first])} of example {first} is none of the head's classes, 0 to {classes - 1}"
        )


def _as_it_is(batch: Any) -> Any:
    return batch
