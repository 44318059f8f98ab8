"""The mean of the tokens."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from zoo.layout import Layout
from zoo.pool.base import PoolConfig


class MeanPool(nn.Module):
    """The mean of the tokens that are not masked. Shapes: (batch, tokens, width) -> (batch, width)."""

    class Config(PoolConfig):
        """Config of the `mean` pool."""

        type: Literal["mean"] = "mean"
        prefix: bool = False
        """Whether class and register tokens count too."""

    def __init__(self, config: Config, *, width: int) -> None:
        super().__init__()
        self.prefix = config.prefix

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        x, real = tokens(x, layout, self.prefix)
        if real is None:
            return x.mean(dim=1)
        return (x * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)


def tokens(x: Tensor, layout: Layout, prefix: bool) -> tuple[Tensor, Tensor | None]:
    """The tokens to pool (batch, tokens, width), and which are real (batch, tokens, 1) if some are not."""
    first = 0 if prefix else layout.prefix
    real = None if layout.mask is None else layout.mask.expand(len(x), 1, 1, -1)[:, 0, 0, first:, None]
    return x[:, first:], None if real is None else real.to(x.dtype)
