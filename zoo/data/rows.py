"""What the parts of data may be: examples in memory, examples read one at a time, or a stream of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from zoo.data.randomness import start_from, undisturbed

Batch = dict[str, Tensor]
"""A model's inputs by name, and `labels`; each tensor's first dimension is the batch."""
Example = Mapping[str, Any]
"""The same of a single example, without the first dimension."""
Row = Mapping[str, Any]
"""An example as it is stored: encoded images, text."""


class Examples(Dataset[Batch]):
    """Examples that lie in memory: tensors by the name of a model's input, and `labels`, equally long."""

    def __init__(self, **tensors: Tensor) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, index: Any) -> Batch:
        return {name: tensor[index] for name, tensor in self.tensors.items()}

    def __getitems__(self, indices: list[int]) -> Batch:
        return self[torch.as_tensor(indices)]  # a whole batch at once


class Rows(Dataset[Example]):
    """Examples that are read when asked for.

    Args:
        rows: anything with a length and an index, such as a `datasets.Dataset`.
        read: makes an example of a row; raises `Broken` where it cannot.
    """

    def __init__(self, rows: Any, read: Callable[[Row], Example]) -> None:
        self.rows, self.read = rows, read

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        return self.read(self.rows[index])


class Stream(IterableDataset[Example]):
    """Examples that can only be read one after the other.

    Rows are read in the process that trains, and made examples of by the loader's workers. So the order
    is the same for any number of workers, and no row is read twice.

    Args:
        rows: gives the rows, in an order that follows from a number, or as they are stored for None.
        read: makes an example of a row; raises `Broken` where it cannot.
    """

    def __init__(self, rows: Callable[[int | None], Iterable[Row]], read: Callable[[Row], Example]) -> None:
        self.rows, self.read = rows, read

    def __iter__(self) -> Iterator[Example]:
        return map(self.read, self.rows(None))


def as_stream(dataset: Iterable[Example]) -> Stream:
    """Any iterable of examples as a stream; its own random numbers follow from the number of the order."""

    def rows(order: int | None) -> Iterator[Row]:
        examples: Iterator[Example] | None = None
        for position in count():
            with undisturbed():
                start_from(order or 0, position)
                examples = examples or iter(dataset)
                example = next(examples, None)
            if example is None:
                return
            yield example

    return Stream(rows, _as_it_is)


def _as_it_is(row: Row) -> Example:
    return row
