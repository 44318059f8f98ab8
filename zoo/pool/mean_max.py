"""Half the mean, half the largest value."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from zoo.layout import Layout
from zoo.pool.base import TokenPoolConfig
from zoo.pool.max import MaxPool
from zoo.pool.mean import MeanPool


class MeanMaxPool(nn.Module):
    """The average of the mean and the largest value.

    Shapes: (batch, tokens, width) -> (batch, width).
    """

    class Config(TokenPoolConfig):
        """Config of the `mean-max` pool."""

        type: Literal["mean-max"] = "mean-max"

    def __init__(self, config: Config, *, width: int) -> None:
        super().__init__()
        self.mean = MeanPool(MeanPool.Config(prefix=config.prefix), width=width)
        self.max = MaxPool(MaxPool.Config(prefix=config.prefix), width=width)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        pooled: Tensor = 0.5 * (self.max(x, layout) + self.mean(x, layout))
        return pooled
