"""One vector for a sentence, made to be compared."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from zoo.config import Config, Problem, Slot, within
from zoo.head.base import HeadConfig
from zoo.layout import Layout
from zoo.registry import make


class SentenceEmbedding(nn.Module):
    """The mean of the tokens that are not padding, of length one, so that products of two are cosines.

    Shapes: (batch, tokens, width) -> sentence_embedding (batch, width).
    Paper: Reimers and Gurevych 2019, https://arxiv.org/abs/1908.10084.
    """

    class Config(HeadConfig):
        """Config of the `sentence-embedding` head."""

        type: Literal["sentence-embedding"] = "sentence-embedding"
        pool: Annotated[Config, Slot("pool", default="mean")] = Field(default="mean", validate_default=True)
        """How the tokens become one vector."""
        normalize: bool = True
        """Whether the vector is brought to length one."""

        def problems(self, *, width: int, **context: Any) -> Iterator[Problem]:
            yield from within("pool", self.pool.problems(width=width, **context))

    def __init__(self, config: Config, *, width: int) -> None:
        super().__init__()
        self.pool = make(config.pool, width=width)
        self.normalize = config.normalize

    def forward(self, x: Tensor, layout: Layout) -> dict[str, Tensor]:
        vector = self.pool(x, layout)
        if self.normalize:  # what guards against a length of zero must not be zero in float16, nor its inverse infinite
            vector = functional.normalize(vector, dim=-1, eps=1e-4 if vector.dtype == torch.float16 else 1e-12)
        return {"sentence_embedding": vector}
