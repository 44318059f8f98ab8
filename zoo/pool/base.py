"""What pools share."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from zoo.config import Config
from zoo.errors import InputError
from zoo.layout import Layout


class PoolConfig(Config):
    """Fields of every pool."""

    kind: ClassVar[str] = "pool"


class TokenPoolConfig(PoolConfig):
    """Fields of every pool over many tokens."""

    prefix: bool = False
    """Whether class and register tokens count too."""


class TokenPool(nn.Module):
    """A pool over many tokens, with or without the prefix, passing over those that are masked."""

    def __init__(self, config: TokenPoolConfig, *, width: int) -> None:
        super().__init__()
        self.prefix = config.prefix

    def tokens(self, x: Tensor, layout: Layout) -> tuple[Tensor, Tensor | None]:
        """The tokens to pool (batch, tokens, width), and which are real (batch, tokens, 1) if some are not."""
        check_one_text(layout)
        first = 0 if self.prefix else layout.prefix
        real = layout.real
        return x[:, first:], None if real is None else real[:, first:, None].to(x.dtype)


def check_one_text(layout: Layout) -> None:
    """Raises where rows hold several texts, of which a pool would make one vector."""
    if layout.texts is not None:
        raise InputError("sequence_ids: texts packed into a row cannot be pooled into one vector")
