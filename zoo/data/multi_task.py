"""The data of several tasks, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from zoo.config import Config, Problem, Slot, within
from zoo.config.base import PositiveInt
from zoo.data.base import Batch, Data, SplitName
from zoo.data.loader import Loader
from zoo.data.randomness import mixed
from zoo.errors import DataError, did_you_mean, one_of
from zoo.registry import make


class MultiTaskData(Data):
    """Data of their own for each task of a model; a batch is one task's, and `task` in it says which, as a number.

    An epoch of training has `steps` batches, of which each task has the share that is its weight's, in random order: an epoch
    is a draw without putting back, so that all runs of as many steps see as much of each task. Each task goes through its own
    data in its own epochs, however long those of the run are. Order and examples follow from the seed and the number of
    steps done, so that a resumed training goes on as if there had been no break. Measured is on all examples of each task.
    """

    class Config(Config):
        """Config of the `multi-task` data."""

        kind: ClassVar[str] = "data"

        type: Literal["multi-task"] = "multi-task"
        tasks: Annotated[dict[str, Annotated[Config, Slot("data")]], Field(min_length=1)]
        """The data of each task, by its name in the model."""
        weights: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
        """How often each task comes, against the others (default: 1 each)."""
        only: Annotated[list[str], Field(min_length=1)] | None = None
        """Which of them are trained and measured (default: all). Each meets the batches that it would meet among all."""
        steps: PositiveInt | None = None
        """How many batches an epoch has (default: as many as the data of all tasks together)."""

        def problems(self, **context: Any) -> Iterator[Problem]:
            model = context["model"]
            if model.type != "multi-task":
                yield ("model", "type"), f"data {self.type!r} need a model of type 'multi-task', and this is {model.type!r}"
                return
            places: list[tuple[str, str | int, str]] = [("weights", name, name) for name in self.weights]
            places += [("only", number, name) for number, name in enumerate(self.only or ())]
            for field, place, name in places:
                if name not in self.tasks:
                    hint = did_you_mean(name, self.tasks) or f"; expected {one_of(self.tasks)}"
                    yield ("data", field, place), f"there are no data of a task {name!r}{hint}"
            for name, data in self.tasks.items():
                if name not in model.tasks:
                    hint = did_you_mean(name, model.tasks) or f"; expected {one_of(model.tasks)}"
                    yield ("data", "tasks", name), f"the model has no task {name!r}{hint}"
                elif data.type == "multi-task":  # type: ignore[attr-defined]
                    yield ("data", "tasks", name, "type"), "these are one task's; use its own data"
                else:
                    yield from _problems_of(name, data, model)

    config: Any

    @cached_property
    def parts(self) -> dict[str, Data]:
        """The data of each task."""
        return {name: make(data) for name, data in self.config.tasks.items()}

    @property
    def asked(self) -> dict[str, Data]:
        """The data of each task that is trained and measured."""
        return {name: part for name, part in self.parts.items() if self.config.only is None or name in self.config.only}

    def has(self, name: SplitName) -> bool:
        """Whether any task has such a part."""
        return any(part.has(name) for part in self.asked.values())

    def check(self, name: SplitName, classes: int | None = None) -> None:
        """Looks through a part of all data."""
        for part in self.asked.values():
            if part.has(name):
                part.check(name, getattr(part.config, "classes", None))

    def augment(self, batch: Batch) -> Batch:
        """What the data of the batch's task do with it."""
        rest = {name: value for name, value in batch.items() if name != "task"}
        return {**list(self.parts.values())[int(batch["task"])].augment(rest), "task": batch["task"]}

    def keep(self, folder: Path) -> None:
        """Leaves in a folder for each task what its data leave, if anything."""
        for name, part in self.parts.items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            part.keep(folder / name)
            if not any((folder / name).iterdir()):
                (folder / name).rmdir()

    def recall(self, folder: Path | None) -> None:
        """Takes from there what was left, each task its own."""
        for name, part in self.parts.items():
            part.recall(None if folder is None else folder / name)

    def loader(  # type: ignore[override]
        self, name: SplitName, *, seed: int = 0, skip: int = 0, shard: tuple[int, int] | None = None
    ) -> Mixture | Chain:
        """Batches of one part: those of the tasks mixed for training, else one task after the other.

        Raises:
            DataError: a part is empty, or a stream, which has no length.
        """
        if name != "train":
            return Chain({task: part.loader(name) for task, part in self.asked.items() if part.has(name)}, list(self.parts))
        asked = self.asked
        loaders = {
            task: part.loader(name, seed=mixed(seed, number), shard=shard)
            for number, (task, part) in enumerate(self.parts.items())
            if task in asked
        }
        for task, loader in loaders.items():
            if not hasattr(loader.sampler, "length"):
                raise DataError(f"{self.parts[task].place}: a stream cannot be mixed with other data; use streaming: false")
        weights = [self.config.weights.get(task, 1.0) for task in loaders]
        return Mixture(loaders, weights, self.config.steps, seed=seed, skip=skip, tasks=list(self.parts))


class Mixture:
    """The training batches of several tasks in one order, which follows from seed and epoch.

    It is its own `sampler`, as far as that is asked for its place: `set_epoch` and `skip`, in batches.

    Args:
        loaders: of each task.
        weights: how often each comes, against the others.
        steps: how many batches an epoch has; None for as many as the loaders together.
        skip: how many batches the first iteration leaves out, without making them.
        tasks: the names of all tasks, whose places are the numbers in `task` (default: those of the loaders).
    """

    batch_size = 1

    def __init__(
        self,
        loaders: dict[str, Loader],
        weights: list[float],
        steps: int | None,
        *,
        seed: int = 0,
        skip: int = 0,
        tasks: list[str] | None = None,
    ) -> None:
        self.loaders, self.seed, self.skip, self.epoch = loaders, seed, skip, 0
        self.numbers = [(tasks or list(loaders)).index(name) for name in loaders]
        self.shares = shares(weights, steps or sum(len(loader) for loader in loaders.values()))

    @property
    def sampler(self) -> Mixture:
        """Who says where in the order the next iteration begins."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """The next iteration is that of `epoch`, from 0; each one goes on to the next by itself."""
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(self.shares)

    def order(self, epoch: int) -> Tensor:
        """The place among the loaders of the one that gives each batch of an epoch, (steps,)."""
        tasks = torch.arange(len(self.shares)).repeat_interleave(torch.tensor(self.shares))
        return tasks[torch.randperm(len(tasks), generator=torch.Generator().manual_seed(mixed(self.seed, epoch)))]

    def __iter__(self) -> Iterator[Batch]:
        epoch, skip = self.epoch, self.skip
        self.epoch, self.skip = epoch + 1, 0
        order = self.order(epoch)
        passed = torch.bincount(order[:skip], minlength=len(self.shares)).tolist()
        running = [
            _from(loader, epoch * share + done) for loader, share, done in zip(self.loaders.values(), self.shares, passed)
        ]
        for place in order[skip:].tolist():
            yield {**next(running[place]), "task": torch.tensor(self.numbers[place])}


class Chain:
    """All batches of several tasks, one task after the other.

    Args:
        loaders: of the tasks that have such a part.
        tasks: the names of all, whose places are the numbers in `task`.
    """

    def __init__(self, loaders: dict[str, Loader], tasks: list[str]) -> None:
        self.loaders, self.tasks = loaders, tasks

    def __len__(self) -> int:
        return sum(len(loader) for loader in self.loaders.values())

    def __iter__(self) -> Iterator[Batch]:
        for task, loader in self.loaders.items():
            for batch in loader:
                yield {**batch, "task": torch.tensor(self.tasks.index(task))}


def shares(weights: list[float], steps: int) -> list[int]:
    """How many of `steps` are each task's, by weight; what rounding leaves goes to the largest rests, the first ones first."""
    exact = [steps * weight / sum(weights) for weight in weights]
    whole = [int(each) for each in exact]
    rests = sorted(range(len(weights)), key=lambda task: whole[task] - exact[task])
    for task in rests[: steps - sum(whole)]:
        whole[task] += 1
    return whole


def _from(loader: Loader, done: int) -> Iterator[Batch]:
    """The batches of a loader without end, behind the first `done`: epoch after epoch."""
    sampler: Any = loader.sampler
    epoch, skip = divmod(done, len(loader))
    while True:
        sampler.set_epoch(epoch)
        sampler.skip = skip * (loader.batch_size or 1)
        yield from loader
        epoch, skip = epoch + 1, 0


def _problems_of(name: str, data: Any, model: Any) -> Iterator[Problem]:
    """What keeps a task of a model from reading its data.

    Data of pairs look for a model of two sides, one for each of the pair; here one path reads both.
    """
    route, read = model.route(name), model.read_by(name)
    sides: dict[str, tuple[str, ...]] = {}
    if hasattr(data, "target_length"):
        route, sides = SimpleNamespace(type="encoder-decoder", encoder=route, decoder=route), {"encoder": (), "decoder": ()}
    elif len(read) > 1:
        vision = model.route(name, read[0])
        route, sides = SimpleNamespace(type="dual-encoder", vision=vision, text=route), {"vision": (), "text": ()}
    for path, message in data.problems(model=route):
        if path[:1] == ("data",):
            yield ("data", "tasks", name, *path[1:]), message
        elif path[:1] == ("model",):
            inner = path[2:] if path[1:2] and path[1] in sides else path[1:]
            if path[1:2] == ("vision",) and inner[:1] == ("embedding",):
                yield ("model", "embeddings", read[0], *inner[1:]), message
            else:
                yield ("model", *(model.place(name, inner) if inner[:1] != ("type",) else ("tasks", name))), message
        else:
            yield from within("data", within("tasks", within(name, [(path, message)])))


__all__ = ["MultiTaskData"]
