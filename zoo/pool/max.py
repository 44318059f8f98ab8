"""The largest value of each channel."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from zoo.layout import Layout
from zoo.pool.base import TokenPool, TokenPoolConfig


class MaxPool(TokenPool):
    """The largest value of each channel, over the tokens that are not masked.

    Shapes: (batch, tokens, width) -> (batch, width).
    """

    class Config(TokenPoolConfig):
        """Config of the `max` pool."""

        type: Literal["max"] = "max"

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        x, real = self.tokens(x, layout)
        if real is None:
            return x.amax(dim=1)
        largest = x.masked_fill(real == 0, torch.finfo(x.dtype).min).amax(dim=1)
        return largest.masked_fill((real.sum(dim=1) == 0), 0.0)
