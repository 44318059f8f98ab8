"""What all positions share."""

from __future__ import annotations

from collections.abc import Hashable
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from zoo.config import Config
from zoo.layout import Layout


class PositionConfig(Config):
    """Fields of every position."""

    kind: ClassVar[str] = "position"
    where: ClassVar[Literal["embedding", "attention"]] = "embedding"
    """Which slot the part fits: it is added to the tokens of an embedding, or acts inside of an attention."""
    windowed: ClassVar[bool] = False
    """Whether it acts within the windows of a grid, so that only attention in such windows has a place for it."""
    context: ClassVar[tuple[str, ...]] = ("head_size", "heads")
    """With what a part that acts inside of attention is built beside its config: these, or the `window`."""


class AttentionPosition(nn.Module):
    """A position that acts inside of attention: it turns queries and keys, or adds to the scores.

    A part is built with the `head_size` and the number of `heads` (or what its config's `context` says), and overrides
    `turned`, or `bias` beside `relative`.
    """

    relative: ClassVar[bool] = False
    """Whether `bias` adds something to the scores."""

    @property
    def identity(self) -> Hashable:
        """Parts of equal identity have equal biases, which the layers of one forward then share; None shares nothing."""
        return None

    def turned(self, query: Tensor, key: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Queries and keys that know their places: (batch, heads, tokens, head_size) and (batch, key heads, ...)."""
        return query, key

    def key_places(self, layout: Layout, keys: int, device: torch.device) -> Tensor:
        """The places that `bias` is given for keys, (batch or 1, keys); queries are the last of them."""
        return torch.arange(keys, device=device)[None]

    def bias(self, query_at: Tensor, key_at: Tensor) -> Tensor:
        """What is added to the scaled scores of queries and keys at these places, counted in their row from 0.

        Shapes: (batch or 1, queries), (batch or 1, keys) -> (batch or 1, heads, queries, keys).
        """
        raise NotImplementedError(f"{type(self).__name__} says nothing of pairs of places")
