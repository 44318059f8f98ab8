"""Telling classes apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from zoo.config import Problem
from zoo.data.base import check_labels
from zoo.errors import DataError
from zoo.extras import require
from zoo.task.base import Step, Task, TaskConfig


class Classification(Task):
    """One class for each example: cross-entropy of the logits, accuracy.

    Paper: Szegedy et al. 2015, https://arxiv.org/abs/1512.00567, section 7 (label smoothing).
    """

    class Config(TaskConfig):
        """Config of the `classification` task."""

        type: Literal["classification"] = "classification"
        label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
        """Share of each target that is spread evenly over all classes, in training."""

        def problems(self, **context: Any) -> Iterator[Problem]:
            head: Any = context["model"].head
            data: Any = context.get("data")
            if getattr(head, "type", None) != "classifier":
                found = "none" if head is None else repr(head.type)
                yield ("model", "head"), f"task 'classification' needs a head of type 'classifier', and this is {found}"
                return
            wanted = getattr(data, "classes", None)
            if wanted is not None and head.classes != wanted:
                yield ("model", "head", "classes"), f"data {data.type!r} has {wanted} classes, and this is {head.classes}"

    config: Config

    def step(self, model: nn.Module, batch: Any) -> Step:
        """The loss of a batch: a mapping with `labels` and the model's inputs, or a pair (inputs, labels).

        Raises:
            DataError: no labels, or one that is none of the head's classes.
        """
        inputs, labels = _taken_apart(batch)
        logits: Tensor = (model(**inputs) if isinstance(inputs, Mapping) else model(inputs)).logits
        if labels.device.type == "cpu":  # elsewhere the look would make the device wait
            check_labels(labels, logits.shape[-1], "labels of a batch")
        smoothing = self.config.label_smoothing if model.training else 0.0
        return Step(functional.cross_entropy(logits.float(), labels, label_smoothing=smoothing), logits, labels)

    def metrics(self, model: nn.Module) -> Mapping[str, Any]:
        """The share of examples whose highest score is the right class."""
        classification = require("torchmetrics.classification", "train", "training")
        classes: int = model.config.head.classes  # type: ignore[union-attr, assignment]
        return {"accuracy": classification.MulticlassAccuracy(classes, average="micro", validate_args=False)}


def _taken_apart(batch: Any) -> tuple[Any, Tensor]:
    if isinstance(batch, Mapping) and "labels" in batch:
        return {name: value for name, value in batch.items() if name != "labels"}, batch["labels"]
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    found = f"one with {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
    raise DataError(f"a batch for a classification is a mapping with 'labels', or a pair (inputs, labels), not {found}")
