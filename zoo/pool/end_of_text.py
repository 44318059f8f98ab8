"""The token that ends a text stands for the whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from zoo.config import Problem
from zoo.config.base import Count
from zoo.errors import InputError
from zoo.layout import Layout
from zoo.pool.base import PoolConfig, check_one_text


class EndOfTextPool(nn.Module):
    """The token that ends a text, which in a causal model has seen all of it.

    Whatever stands behind it changes nothing, so texts may be filled up with that same token.
    Paper: Radford et al. 2021, https://arxiv.org/abs/2103.00020, section 2.4.
    Shapes: (batch, tokens, width) -> (batch, width).
    """

    class Config(PoolConfig):
        """Config of the `end-of-text` pool."""

        type: Literal["end-of-text"] = "end-of-text"
        id: Count | None = None
        """The token that ends a text: the first of these is taken, and the first token of a text that has none (default: the
        token with the highest number, and of several the first, which is the same where the last word of the vocabulary ends
        texts)."""

        def problems(self, *, vocabulary: int | None, **context: Any) -> Iterator[Problem]:
            if vocabulary is None:
                yield (), "only texts have a token that ends them; use class-token, mean, max or attention"
            elif self.id is not None and self.id >= vocabulary:
                yield ("id",), f"{self.id} is none of the vocabulary's 0 to {vocabulary - 1}"

    def __init__(self, config: Config, *, width: int) -> None:
        super().__init__()
        self.id = config.id

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        check_one_text(layout)
        if layout.ids is None:
            raise InputError("a pool that looks for the end of a text needs an embedding of type 'tokens'")
        ends = layout.ids.argmax(-1) if self.id is None else (layout.ids == self.id).to(torch.uint8).argmax(-1)
        return x[torch.arange(len(x), device=x.device), ends]

    def extra_repr(self) -> str:
        return f"id={self.id}"
