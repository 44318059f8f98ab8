"""The last token stands for the whole."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from zoo.config.base import Count
from zoo.errors import InputError
from zoo.layout import Layout
from zoo.pool.base import PoolConfig, check_one_text


class LastTokenPool(nn.Module):
    """The last token that is none of padding, as in decoders, where it has seen all others.

    Shapes: (batch, tokens, width) -> (batch, width).
    """

    class Config(PoolConfig):
        """Config of the `last-token` pool."""

        type: Literal["last-token"] = "last-token"
        padding: Count | None = None
        """The token that fills rows up: the last other one is taken, whatever the mask says, and the first of a text of
        padding alone (default: the last that is not masked)."""

    def __init__(self, config: Config, *, width: int) -> None:
        super().__init__()
        self.padding = config.padding

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        check_one_text(layout)
        real: Any = layout.real
        if self.padding is not None:
            if layout.ids is None:
                raise InputError("a pool that looks for the padding token needs an embedding of type 'tokens'")
            real = layout.ids != self.padding
        if real is None:
            return x[:, -1]
        last = (torch.arange(x.shape[1], device=x.device) * real).argmax(-1)
        return x[torch.arange(len(x), device=x.device), last]
