"""From a part of the data to batches, whatever the part is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from zoo.data.broken import Broken, Tally
from zoo.data.order import Order, Shuffled, Streamed
from zoo.data.randomness import start_from, undisturbed
from zoo.data.rows import Batch, Example, Examples, Stream, as_stream
from zoo.errors import DataError

Collate = Callable[[list[Example]], Batch]


class Fetched(NamedTuple):
    """What a worker hands over: errors are words in it, since an exception would arrive with the worker's traceback."""

    batch: Batch | None
    broken: dict[str, str] = {}
    error: str | None = None


class Fetch(Dataset[Any]):
    """Makes a batch of what the order drew; this is what workers do.

    Args:
        dataset: a part of the data.
        collate: makes a batch of examples.
        seed: the random numbers of an example follow from it, the epoch and the example's index.
        tally: counts broken examples; here only its limit is asked.
        part: what messages call the dataset.
        refill: give a batch whose examples are all broken another one, the next that can be read.
    """

    def __init__(self, dataset: Any, collate: Collate, seed: int, tally: Tally, part: str, refill: bool) -> None:
        self.dataset, self.collate, self.seed, self.tally, self.refill = dataset, collate, seed, tally, refill
        self.part = part

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, drawn: Sequence[Any]) -> Fetched:
        keys = [key if isinstance(key, tuple) else (0, key) for key in drawn]  # torch's own samplers give indices alone
        if isinstance(self.dataset, Examples):
            return Fetched(self.dataset.__getitems__([index for _, index in keys]))
        broken: dict[str, str] = {}
        try:
            with undisturbed():
                examples = [example for key in keys if (example := self._example(broken, *key)) is not None]
                if not examples and self.refill:
                    examples = self._next_after(broken, *keys[-1])
            return Fetched(self.collate(examples) if examples else None, broken)
        except DataError as error:
            return Fetched(None, broken, str(error))

    def _example(self, broken: dict[str, str], epoch: int, index: int, *row: Any) -> Example | None:
        start_from(self.seed, epoch, index)
        try:
            return cast(Example, self.dataset.read(*row) if row else self.dataset[index])
        except Broken as error:
            broken[error.name or f"row {index} of the {self.part} part"] = error.reason
            return None

    def _next_after(self, broken: dict[str, str], epoch: int, index: int) -> list[Example]:
        for step in range(1, len(self)):
            example = self._example(broken, epoch, (index + step) % len(self))
            if example is not None:
                return [example]
            if len(broken) > self.tally.limit:
                break
        return []


class Loader(DataLoader[Batch]):
    """Batches without the examples that cannot be read.

    Its length and the positions of batches do not change by broken examples: a batch only gets smaller.
    """

    dataset: Any

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        tally: Tally = self.dataset.tally
        whole = getattr(self.sampler, "skip", 0) == 0
        met: dict[str, str] = {}
        number = 0
        for fetched in cast(Iterator[Fetched], super().__iter__()):
            tally.add(fetched.broken, met)
            if fetched.error is not None:
                raise DataError(fetched.error)
            if fetched.batch is not None:
                number += 1
                yield fetched.batch
        if number == 0 and whole:
            none = "has no examples that can be read" if met else "is empty"
            raise DataError(f"{tally.place}: its {self.dataset.part} part {none}")


def make_loader(
    dataset: Any,
    *,
    batch_size: int,
    workers: int,
    collate: Collate,
    tally: Tally,
    part: str,
    seed: int = 0,
    skip: int = 0,
    shard: tuple[int, int] | None = None,
) -> Loader:
    """Batches of a part of the data: of `train` shuffled, else in order."""
    training = part == "train"
    streaming = isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__")
    order: Order | None = None
    if streaming:
        if not isinstance(dataset, Stream):
            dataset, workers = as_stream(dataset), 0  # its examples are made as it is read, which is done here
        order = Streamed(dataset, seed if training else None, skip * batch_size, shard if training else (0, 1))
    elif training:
        order = Shuffled(len(dataset), seed, skip * batch_size, shard)
    return Loader(
        Fetch(dataset, collate, seed if training else 0, tally, part, refill=training and not streaming),
        batch_size=batch_size,
        sampler=order,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=_as_it_is,
        generator=torch.Generator().manual_seed(0),  # torch's loader draws a number from it, which nothing depends on
    )


def stacked(examples: list[Example]) -> Batch:
    """The examples' tensors and numbers side by side.

    Raises:
        DataError: they differ in shape or in what they hold.
    """
    try:
        return cast(Batch, default_collate([dict(example) for example in examples]))
    except (RuntimeError, TypeError, KeyError) as error:
        found = {str({name: tuple(getattr(value, "shape", ())) for name, value in example.items()}) for example in examples}
        what = f"; shapes: {' and '.join(sorted(found)[:2])}" if len(found) > 1 else f": {str(error).partition(chr(10))[0]}"
        raise DataError(f"the examples of a batch do not fit together{what}") from None


def _as_it_is(fetched: Any) -> Any:
    return fetched
