"""No pooling."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from zoo.layout import Layout
from zoo.pool.base import PoolConfig


class NoPool(nn.Module):
    """All tokens as they are.

    Shapes: (batch, tokens, width) -> (batch, tokens, width).
    """

    class Config(PoolConfig):
        """Config of no pool."""

        type: Literal["none"] = "none"

    def __init__(self, config: Config, *, width: int) -> None:
        super().__init__()

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        return x
