"""What all tasks share: a loss, what is predicted, and how good that is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor, nn

from zoo.config import Config

Direction = Literal["min", "max"]


class TaskConfig(Config):
    """Fields of every task."""

    kind: ClassVar[str] = "task"


class Step(NamedTuple):
    """What a task makes of one batch."""

    loss: Tensor
    """The mean loss of the batch, a scalar."""
    predictions: Tensor
    """What the metrics compare with `targets`: for a classification the logits (batch, classes)."""
    targets: Tensor
    """What was wanted: for a classification the labels (batch,). The loss is a mean over so many."""
    task: str | None = None
    """Of which of several tasks it is, whose metrics begin with this name and a slash; None where there is one task."""
    without: tuple[str, ...] = ()
    """Those of the task's metrics to which it has nothing to say."""
    routers: Tensor | None = None
    """What the routers of a model with experts added to the loss; it counts the tokens of all processes."""

    def measured(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the metrics to which this step has something to say."""
        start = "" if self.task is None else f"{self.task}/"
        silent = {start + name for name in self.without}
        return {name: metric for name, metric in metrics.items() if name.startswith(start) and name not in silent}


def step_of(loss: Tensor, output: Any, predictions: Tensor, targets: Tensor, without: tuple[str, ...] = ()) -> Step:
    """A step with what the routers of a model with experts add to its loss in training; of two towers, those of both."""
    towers = [getattr(output, f"{name}_model_output", None) for name in ("text", "vision")]
    added = [own for each in (output, *towers) if (own := getattr(each, "router_loss", None)) is not None]
    if not added:
        return Step(loss, predictions, targets, without=without)
    routers: Tensor = sum(added[1:], start=added[0])
    return Step(loss + routers, predictions, targets, without=without, routers=routers)


class Task:
    """Base of tasks."""

    best: ClassVar[tuple[str, Direction]] = ("accuracy", "max")
    """By which figure models are compared, `loss` or a metric, and whether the lowest or the highest is the best."""

    group: Any = None
    """The processes that train on batches of their own, of those that train; None for all."""

    def __init__(self, config: TaskConfig) -> None:
        self.config = config

    def adapt(self, data: Any) -> None:
        """Agrees with the data, before any batch of them comes, on what the config leaves open; most tasks need nothing."""

    def references(self, data: Any, split: Any, targets: Tensor) -> Mapping[str, float]:
        """Figures that those of a model on a part of the data are to be compared with, by name; most tasks have none.

        Args:
            targets: of all steps on that part.
        """
        return {}

    def step(self, model: nn.Module, batch: Any) -> Step:
        """Runs the model on a batch and compares the answer with what was wanted."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its loss is")

    def after_step(self, model: nn.Module) -> None:
        """Puts right what a step of the optimiser may have moved too far; most tasks need nothing."""

    def metrics(self, model: nn.Module) -> Mapping[str, Any]:
        """New torchmetrics by name; each is given a step's predictions and targets."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its metrics are")
