"""Several tasks learned by one model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from zoo.config import Config, Problem, Slot
from zoo.errors import DataError, did_you_mean, one_of
from zoo.registry import make
from zoo.task.base import Direction, Step, Task, TaskConfig


class MultiTask(Task):
    """Each batch is a step of one task, by the path of the model that has its name.

    Losses are not weighed: how much a task counts is how often it comes (`data.weights`). Metrics are those of each task,
    with its name in front: `recognise/accuracy`, `recognise/loss`.
    Paper: Kaiser et al. 2017, https://arxiv.org/abs/1706.05137.
    """

    class Config(TaskConfig):
        """Config of the `multi-task` task."""

        type: Literal["multi-task"] = "multi-task"
        tasks: Annotated[dict[str, Annotated[Config, Slot("task")]], Field(min_length=1)]
        """What is learned by each task, by its name in the model and the data, in the order of the data."""

        def problems(self, **context: Any) -> Iterator[Problem]:
            model, data = context["model"], context.get("data")
            if model.type != "multi-task":
                yield ("model", "type"), f"task {self.type!r} needs a model of type 'multi-task', and this is {model.type!r}"
                return
            if data is not None and data.type != self.type:
                yield ("data",), f"task {self.type!r} needs data of type 'multi-task', and these are {data.type!r}"
                return
            if data is not None and list(data.tasks) != list(self.tasks):
                what = f"the data are of {', '.join(data.tasks)}, and these are {', '.join(self.tasks)}"
                yield ("task", "tasks"), f"{what}; name the same ones in the same order"
                return
            for name, task in self.tasks.items():
                if name not in model.tasks:
                    hint = did_you_mean(name, model.tasks) or f"; expected {one_of(model.tasks)}"
                    yield ("task", "tasks", name), f"the model has no task {name!r}{hint}"
                    continue
                own = None if data is None else data.tasks[name]
                for path, message in task.problems(model=model.route(name), data=own):
                    yield _placed(name, path, model), message

    config: Config
    best: ClassVar[tuple[str, Direction]] = ("loss", "min")

    @cached_property
    def parts(self) -> dict[str, Task]:
        """The task of each name."""
        return {name: make(task) for name, task in self.config.tasks.items()}

    def adapt(self, data: Any) -> None:
        """Lets each task agree with its data."""
        for name, part in self.parts.items():
            part.group = self.group
            if name in getattr(data, "parts", {}):
                part.adapt(data.parts[name])

    def step(self, model: nn.Module, batch: Any) -> Step:
        """The step of the task whose number is the batch's `task`, on the model's path of that name.

        Raises:
            DataError: the batch does not say of which task it is.
        """
        names = list(self.parts)
        number = batch.get("task") if isinstance(batch, Mapping) else None
        if number is None or not 0 <= int(number) < len(names):
            raise DataError(f"a batch of several tasks has 'task', a number from 0 to {len(names) - 1}, got {number}")
        name, routes = names[int(number)], getattr(model, "route", None)
        if routes is None:
            raise DataError(f"task {name!r}: a model of type 'multi-task' is needed, and this is {type(model).__name__}")
        rest = {key: value for key, value in batch.items() if key != "task"}
        return self.parts[name].step(routes(name), rest)._replace(task=name)

    def after_step(self, model: nn.Module) -> None:
        for name, part in self.parts.items():
            part.after_step(model.route(name))  # type: ignore[operator]

    def metrics(self, model: nn.Module) -> Mapping[str, Any]:
        """Those of each task on its path, `NAME/METRIC`."""
        route: Any = model.route
        return {
            f"{name}/{metric}": each for name, part in self.parts.items() for metric, each in part.metrics(route(name)).items()
        }


def _placed(name: str, path: tuple[str | int, ...], model: Any) -> tuple[str | int, ...]:
    """Where in a run the field of one task's own run stands."""
    if path[:1] in (("task",), ("data",)):
        return (path[0], "tasks", name, *path[1:])
    return ("model", *model.place(name, path[1:])) if path[1:2] != ("type",) else ("model", "tasks", name)


__all__ = ["MultiTask"]
