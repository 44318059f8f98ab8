"""Scores for what stands behind a mask."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from zoo import kernel
from zoo.activation import Activation
from zoo.config import Config, Problem, Slot, within
from zoo.errors import InputError
from zoo.head.base import HeadConfig
from zoo.layout import Layout
from zoo.registry import make


class MaskedLanguageModel(nn.Module):
    """A linear layer, an activation and a norm, then a score for each token of the vocabulary.

    Shapes: (batch, tokens, width) -> logits (batch, tokens, vocabulary).
    Paper: Devlin et al. 2018, https://arxiv.org/abs/1810.04805, section 3.1.
    """

    class Config(HeadConfig):
        """Config of the `masked-language-model` head."""

        type: Literal["masked-language-model"] = "masked-language-model"
        activation: Activation = "gelu"
        """The non-linearity behind the linear layer."""
        norm: Annotated[Config | None, Slot("norm", default="layer-norm", optional=True)] = None
        """The norm before the scores (default: one as in the blocks)."""
        tied: bool = True
        """Whether tokens are scored by their vectors in the embedding; otherwise the head has vectors of its own."""

        context: ClassVar[tuple[str, ...]] = ("width", "vocabulary", "norm")

        def problems(self, *, width: int, vocabulary: int | None = None, **context: Any) -> Iterator[Problem]:
            if vocabulary is None:
                yield (), "a head that scores tokens needs an embedding of type 'tokens'"
            if self.norm is not None:
                yield from within("norm", self.norm.problems(width=width, **context))

    def __init__(self, config: Config, *, width: int, vocabulary: int, norm: Any = None) -> None:
        super().__init__()
        self.dense = kernel.Linear(width, width)
        self.activation = config.activation
        self.norm = make(config.norm or norm or Slot("norm").validate("layer-norm"), width=width)
        self.weight = None if config.tied else nn.Parameter(torch.empty(vocabulary, width))
        self.bias = nn.Parameter(torch.empty(vocabulary))

    def forward(self, x: Tensor, layout: Layout) -> dict[str, Tensor]:
        return {"logits": self.scores(x, layout)}

    def scores(self, x: Tensor, layout: Layout) -> Tensor:
        """(batch, tokens, width) -> (batch, tokens, vocabulary)"""
        weight = layout.table if self.weight is None else self.weight
        if weight is None:
            raise InputError("a tied head scores by the vectors of the embedding, and this embedding has none")
        return kernel.linear(self.norm(kernel.activation(self.activation)(self.dense(x))), weight, self.bias)

    def initialize(self, init: Any) -> None:
        nn.init.zeros_(self.bias)
        if self.weight is not None:
            init.linear(self.weight, None)
