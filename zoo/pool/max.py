"""The largest value of each channel."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from zoo.layout import Layout
from zoo.pool.base import PoolConfig
from zoo.pool.mean import tokens


class MaxPool(nn.Module):
    """The largest value of each channel. Shapes: (batch, tokens, width) -> (batch, width)."""

    class Config(PoolConfig):
        """Config of the `max` pool."""

        type: Literal["max"] = "max"
        prefix: bool = False
        """Whether class and register tokens count too."""

    def __init__(self, config: Config, *, width: int) -> None:
        super().__init__()
        self.prefix = config.prefix

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        x, real = tokens(x, layout, self.prefix)
        if real is None:
            return x.amax(dim=1)
        largest = x.masked_fill(real == 0, torch.finfo(x.dtype).min).amax(dim=1)
        return largest.masked_fill((real.sum(dim=1) == 0), 0.0)
