"""What all tasks share: a loss, what is predicted, and how good that is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from zoo.config import Config


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
    """What was wanted: for a classification the labels (batch,)."""


class Task:
    """Base of tasks."""

    def __init__(self, config: TaskConfig) -> None:
        self.config = config

    def step(self, model: nn.Module, batch: Any) -> Step:
        """Runs the model on a batch and compares the answer with what was wanted."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its loss is")

    def metrics(self, model: nn.Module) -> Mapping[str, Any]:
        """New torchmetrics by name; each is given a step's predictions and targets."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its metrics are")
