"""In which order examples are met: it follows from seed and epoch, for any number of processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DistributedSampler

from zoo.data.randomness import mixed
from zoo.data.rows import Row, Stream


class Order(DistributedSampler[Any]):
    """Says which examples a process of a training meets, each with the epoch and a number of its own.

    Of `number` processes, the one of `rank` takes every `number`-th example, so that their batches of one step
    together are the batch of a single process. It is a DistributedSampler by type because Lightning takes such a
    one as it is; around any other it puts a sampler of its own, which shuffles a second time.

    Args:
        seed, skip: of the order; and how many examples of the first iteration are left out.
        shard: rank and number of processes (default: those of torch.distributed, else a single one).
    """

    def __init__(self, seed: int = 0, skip: int = 0, shard: tuple[int, int] | None = None) -> None:
        self.seed, self.skip, self._shard = seed, skip, shard
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """The next iteration is that of `epoch`, from 0; each one goes on to the next by itself."""
        self.epoch = epoch

    @property
    def shard(self) -> tuple[int, int]:
        """Rank and number of processes."""
        if self._shard is not None:
            return self._shard
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1

    def __iter__(self) -> Iterator[Any]:
        epoch, skip = self.epoch, self.skip
        self.epoch, self.skip = epoch + 1, 0
        yield from islice(self.drawn(epoch), skip, None)

    def drawn(self, epoch: int) -> Iterable[Any]:
        """What this process meets in an epoch."""
        raise NotImplementedError


class Shuffled(Order):
    """Pairs (epoch, index) of examples that can be asked for by index.

    Processes get equally many: where the number is not divisible, the first examples come again.
    """

    def __init__(self, length: int, seed: int = 0, skip: int = 0, shard: tuple[int, int] | None = None) -> None:
        super().__init__(seed, skip, shard)
        self.length = length

    def __len__(self) -> int:
        return -(-self.length // self.shard[1])

    def drawn(self, epoch: int) -> Iterable[tuple[int, int]]:
        order = torch.randperm(self.length, generator=torch.Generator().manual_seed(mixed(self.seed, epoch)))
        rank, number = self.shard
        places = torch.arange(rank, len(self) * number, number) % self.length
        return ((epoch, index) for index in order[places].tolist())


class Streamed(Order):
    """Triples (epoch, position, row) of a stream, which has no length.

    Processes get equally many: what is left of the last round is left out. Every process reads all rows.

    Args:
        seed: None for the order in which the rows are stored, each epoch being like the first.
    """

    def __init__(self, stream: Stream, seed: int | None = 0, skip: int = 0, shard: tuple[int, int] | None = None) -> None:
        super().__init__(seed or 0, skip, shard)
        self.stream, self.shuffle = stream, seed is not None

    def __len__(self) -> int:
        raise TypeError("a stream has no length")

    def drawn(self, epoch: int) -> Iterator[tuple[int, int, Row]]:
        rank, number = self.shard
        epoch = epoch if self.shuffle else 0
        rows = enumerate(self.stream.rows(mixed(self.seed, epoch) if self.shuffle else None))
        while len(turn := list(islice(rows, number))) == number:
            yield (epoch, *turn[rank])
