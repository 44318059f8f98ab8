"""The mean of the tokens."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from zoo.layout import Layout
from zoo.pool.base import TokenPool, TokenPoolConfig


class MeanPool(TokenPool):
    """The mean of the tokens that are not masked.

    Shapes: (batch, tokens, width) -> (batch, width).
    """

    class Config(TokenPoolConfig):
        """Config of the `mean` pool."""

        type: Literal["mean"] = "mean"

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        x, real = self.tokens(x, layout)
        if real is None:
            return x.mean(dim=1)
        return (x * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)
