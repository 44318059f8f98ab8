"""Scores for the next token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from zoo import kernel
from zoo.config import Problem
from zoo.errors import InputError
from zoo.head.base import HeadConfig
from zoo.kernel.packed import Prepared, Preparing
from zoo.layout import Layout


class LanguageModel(Preparing):
    """A score for each token of the vocabulary, at each token of the text: which one comes next.

    Shapes: (batch, tokens, width) -> logits (batch, tokens, vocabulary). Cost: width x vocabulary products per token.
    Papers: Bengio et al. 2003, https://www.jmlr.org/papers/v3/bengio03a.html; Press and Wolf 2017,
    https://arxiv.org/abs/1608.05859 (tied).
    """

    class Config(HeadConfig):
        """Config of the `language-model` head."""

        type: Literal["language-model"] = "language-model"
        tied: bool = True
        """Whether tokens are scored by their vectors in the embedding; otherwise the head has vectors of its own."""
        bias: bool = False
        """Whether each token of the vocabulary has a score of its own that is added."""
        scale: Annotated[float, Field(gt=0)] | None = None
        """What the tokens are multiplied by before they are scored, such as width^-0.5 in T5 (default: nothing)."""

        context: ClassVar[tuple[str, ...]] = ("width", "vocabulary")

        def problems(self, *, vocabulary: int | None = None, **context: Any) -> Iterator[Problem]:
            if vocabulary is None:
                yield (), "a head that scores tokens needs an embedding of type 'tokens'"

    memory = Prepared

    def __init__(self, config: Config, *, width: int, vocabulary: int) -> None:
        super().__init__()
        self.forget()
        self.scale = config.scale
        self.weight = None if config.tied else nn.Parameter(torch.empty(vocabulary, width))
        self.bias = nn.Parameter(torch.empty(vocabulary)) if config.bias else None

    def forward(self, x: Tensor, layout: Layout) -> dict[str, Tensor]:
        return {"logits": self.scores(x, layout)}

    def scores(self, x: Tensor, layout: Layout) -> Tensor:
        """(batch, tokens, width) -> (batch, tokens, vocabulary)"""
        weight = layout.table if self.weight is None else self.weight
        if weight is None:
            raise InputError("a tied head scores by the vectors of the embedding, and this embedding has none")
        return kernel.linear(x if self.scale is None else x * self.scale, weight, self.bias, self.prepared)

    def initialize(self, init: Any) -> None:
        if self.weight is not None:
            init.linear(self.weight, None)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        return f"tied={self.weight is None}, scale={self.scale}"
