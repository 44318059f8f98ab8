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
from zoo.task.base import Step, Task, TaskConfig, step_of


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

        Labels are class numbers (batch,) or, where examples were mixed, shares of the classes (batch, classes). The
        targets of the metrics are class numbers: of shares the largest.

        Raises:
            DataError: no labels, or such that are none of the head's classes.
        """
        inputs, labels = _taken_apart(batch)
        output = model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
        logits: Tensor = output.logits
        targets = _targets(labels, logits.shape[-1])
        smoothing = self.config.label_smoothing if model.training else 0.0
        wanted = labels.float() if labels.is_floating_point() else targets
        loss = functional.cross_entropy(logits.float(), wanted, label_smoothing=smoothing)
        return step_of(loss, output, logits, targets)

    def metrics(self, model: nn.Module) -> Mapping[str, Any]:
        """The share of examples whose highest score is the right class."""
        classification = require("torchmetrics.classification", "train", "training")
        classes: int = model.config.head.classes  # type: ignore[union-attr, assignment]
        return {"accuracy": classification.MulticlassAccuracy(classes, average="micro", validate_args=False)}


def _targets(labels: Tensor, classes: int) -> Tensor:
    """The class of each example (batch,), checked where that makes no device wait."""
    shares, here = labels.is_floating_point(), labels.device.type == "cpu"
    if labels.ndim != (2 if shares else 1) or (shares and labels.shape[1] != classes):
        kinds = f"whole numbers of shape (batch,) or shares of shape (batch, {classes})"
        raise DataError(f"labels of a batch: expected {kinds}, got {labels.dtype} of shape {tuple(labels.shape)}")
    if not shares:
        if here:
            check_labels(labels, classes, "labels of a batch")
        return labels.long()
    if here and not bool(((labels >= 0).all(1) & ((labels.sum(1) - 1).abs() < 1e-2)).all()):
        raise DataError("labels of a batch: shares of the classes are from 0 to 1, and 1 together")
    return labels.argmax(-1)


def _taken_apart(batch: Any) -> tuple[Any, Tensor]:
    if isinstance(batch, Mapping) and "labels" in batch:
        return {name: value for name, value in batch.items() if name != "labels"}, batch["labels"]
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    found = f"one with {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
    raise DataError(f"a batch for a classification is a mapping with 'labels', or a pair (inputs, labels), not {found}")
