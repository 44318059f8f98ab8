"""A learned query that attends to the tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from zoo.config import Config, Problem, Slot, within
from zoo.layout import Layout, Memory
from zoo.pool.base import TokenPoolConfig, check_one_text
from zoo.registry import make


class AttentionPool(nn.Module):
    """A learned query attends to the tokens; a norm and a feed-forward follow, with a residual around them.

    Paper: Zhai et al. 2022, https://arxiv.org/abs/2106.04560 (multi-head attention pooling).
    Shapes: (batch, tokens, width) -> (batch, width).
    """

    class Config(TokenPoolConfig):
        """Config of the `attention` pool."""

        type: Literal["attention"] = "attention"
        attention: Annotated[Config, Slot("attention", default="full")]
        """The attention from the learned query to the tokens."""
        norm: Annotated[Config, Slot("norm", default="layer-norm")]
        """The norm before the feed-forward."""
        feedforward: Annotated[Config, Slot("feedforward", default="mlp")]
        """The feed-forward."""

        def problems(self, *, width: int, **context: Any) -> Iterator[Problem]:
            for name in ("attention", "norm", "feedforward"):
                yield from within(name, getattr(self, name).problems(width=width, **context))

    def __init__(self, config: Config, *, width: int) -> None:
        super().__init__()
        self.prefix = config.prefix
        self.query = nn.Parameter(torch.empty(1, 1, width))
        self.attention = make(config.attention, width=width)
        self.norm = make(config.norm, width=width)
        self.feedforward = make(config.feedforward, width=width)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        check_one_text(layout)
        first = 0 if self.prefix else layout.prefix
        mask = None if layout.real is None else layout.real[:, None, None, first:]
        query = self.query.expand(len(x), -1, -1)
        mixed, _ = self.attention(query, layout._replace(shared=None), memory=Memory(x[:, first:], mask))
        pooled: Tensor = (mixed + self.feedforward(self.norm(mixed)))[:, 0]
        return pooled

    def initialize(self, init: Any) -> None:
        init.token(self.query, self.query.shape[-1] ** -0.5)
