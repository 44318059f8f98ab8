"""The class token stands for the whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from torch import Tensor, nn

from zoo.config import Problem
from zoo.layout import Layout
from zoo.pool.base import PoolConfig


class ClassTokenPool(nn.Module):
    """The first token.

    Shapes: (batch, tokens, width) -> (batch, width).
    """

    class Config(PoolConfig):
        """Config of the `class-token` pool."""

        type: Literal["class-token"] = "class-token"

        def problems(self, *, class_token: bool = True, **context: Any) -> Iterator[Problem]:
            if not class_token:
                yield (), "the embedding has no class token to pool; use mean, max or attention"

    def __init__(self, config: Config, *, width: int) -> None:
        super().__init__()

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        return x[:, 0]
