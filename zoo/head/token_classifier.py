"""Scores for classes, of each token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from torch import Tensor, nn

from zoo import kernel
from zoo.config import Problem
from zoo.config.base import PositiveInt, Probability
from zoo.head.base import HeadConfig
from zoo.layout import Layout


class TokenClassifier(nn.Module):
    """Gives each class a score for each token, as for naming the persons and places of a text.

    Shapes: (batch, tokens, width) -> logits (batch, tokens, classes).
    Paper: Devlin et al. 2018, https://arxiv.org/abs/1810.04805, section 5.3.
    """

    class Config(HeadConfig):
        """Config of the `token-classifier` head."""

        type: Literal["token-classifier"] = "token-classifier"
        classes: PositiveInt = 2
        """How many classes."""
        dropout: Probability = 0.0
        """Share of values dropped in training before the linear layer."""
        labels: list[str] | None = None
        """What the classes are called; without names they are numbers."""

        follows = {"labels": "classes"}

        def problems(self, **context: Any) -> Iterator[Problem]:
            if self.labels is not None and len(self.labels) != self.classes:
                yield ("labels",), f"{len(self.labels)} names for {self.classes} classes"

    def __init__(self, config: Config, *, width: int) -> None:
        super().__init__()
        self.dropout = nn.Dropout(config.dropout)
        self.output = kernel.Linear(width, config.classes)

    def forward(self, x: Tensor, layout: Layout) -> dict[str, Tensor]:
        return {"logits": self.output(self.dropout(x))}
