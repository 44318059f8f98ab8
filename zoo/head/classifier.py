"""Scores for classes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor, nn

from zoo import kernel
from zoo.activation import Activation
from zoo.config import Config, Problem, Slot, within
from zoo.config.base import Count, Probability
from zoo.head.base import HeadConfig
from zoo.layout import Layout
from zoo.registry import make


class Classifier(nn.Module):
    """Pools the tokens and gives each class a score.

    Shapes: (batch, tokens, width) -> logits (batch, classes).
    """

    class Config(HeadConfig):
        """Config of the `classifier` head."""

        type: Literal["classifier"] = "classifier"
        classes: Count = 1000
        """How many classes; 0 leaves the linear layer out, so that the logits are the pooled features."""
        pool: Annotated[Config, Slot("pool", default="class-token")] = Field(default="class-token", validate_default=True)
        """How the tokens become one vector."""
        norm: Annotated[Config | None, Slot("norm", default="layer-norm", optional=True)] = None
        """A norm of the pooled vector."""
        dense: Activation | None = None
        """The non-linearity of one more linear layer, of the same width, between pool and scores (default: no such layer)."""
        dense_dropout: Probability = 0.0
        """Share of the values dropped in training before that layer."""
        dropout: Probability = 0.0
        """Share of the values dropped in training before the scores."""
        bias: bool = True
        """Whether the linear layer has a bias."""
        labels: list[str] | None = None
        """What the classes are called; without names they are numbers."""

        follows = {"labels": "classes"}

        def problems(self, *, width: int, **context: Any) -> Iterator[Problem]:
            if self.labels is not None and len(self.labels) != self.classes:
                yield ("labels",), f"{len(self.labels)} names for {self.classes} classes"
            yield from within("pool", self.pool.problems(width=width, **context))
            if self.norm is not None:
                yield from within("norm", self.norm.problems(width=width, **context))

    def __init__(self, config: Config, *, width: int) -> None:
        super().__init__()
        self.pool = make(config.pool, width=width)
        self.norm = make(config.norm, width=width)
        self.dense = kernel.Linear(width, width) if config.dense is not None else None
        self.activation = config.dense
        self.dense_dropout, self.dropout = nn.Dropout(config.dense_dropout), nn.Dropout(config.dropout)
        self.output = kernel.Linear(width, config.classes, config.bias) if config.classes else None

    def forward(self, x: Tensor, layout: Layout) -> dict[str, Tensor]:
        pooled = self.pool(x, layout)
        pooled = pooled if self.norm is None else self.norm(pooled)
        if self.dense is not None and self.activation is not None:
            pooled = kernel.activation(self.activation)(self.dense(self.dense_dropout(pooled)))
        pooled = self.dropout(pooled)
        return {"logits": pooled if self.output is None else self.output(pooled)}
