"""Scores that fall with the distance."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import ClassVar, Literal

import torch
from torch import Tensor

from zoo.config.base import PositiveInt
from zoo.layout import Layout
from zoo.position.base import AttentionPosition, PositionConfig
from zoo.position.rotary import warn_beyond


class AlibiPosition(AttentionPosition):
    """Takes off each score what the query and the key are apart, times a slope of the head's own; nothing is learned.

    The slopes of n heads fall from 2^(-8/n) to 2^-8 by equal ratios. Where n is no power of two, they are those of the
    largest power below it, and then every second one of twice that power. In attention that is not causal the distance
    counts on both sides. Paper: Press et al. 2021, https://arxiv.org/abs/2108.12409.
    Shapes: places (batch or 1, queries), (batch or 1, keys) -> (batch or 1, heads, queries, keys), float32.
    """

    class Config(PositionConfig):
        """Config of `alibi` positions."""

        type: Literal["alibi"] = "alibi"
        length: PositiveInt | None = None
        """How many places the model was trained on. Beyond them it works on, and warns once."""

        where: ClassVar[Literal["embedding", "attention"]] = "attention"

    relative = True
    sharding: ClassVar[dict[str, str]] = {"slopes": "whole"}
    """How tensor-parallel processes divide it: see `zoo.training.sharding`."""

    def __init__(self, config: Config, *, head_size: int, heads: int) -> None:
        super().__init__()
        self.config, self.heads = config, heads
        self.slopes = slopes(heads)
        self._warned = False

    @property
    def identity(self) -> Hashable:
        return ("alibi", self.heads, self.config.length)

    def turned(self, query: Tensor, key: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        self._warned = self._warned or warn_beyond(self.config.length, layout, query.shape[2])
        return query, key

    def bias(self, query_at: Tensor, key_at: Tensor) -> Tensor:
        apart = (query_at[:, :, None] - key_at[:, None, :]).abs()
        steep = torch.tensor(self.slopes, dtype=torch.float32, device=apart.device)
        return -steep[:, None, None] * apart[:, None].float()

    def extra_repr(self) -> str:
        return f"heads={self.heads}"


def slopes(heads: int) -> tuple[float, ...]:
    """By how much the score of each head falls from one place to the next."""
    power = 2 ** math.floor(math.log2(heads))
    first = [2 ** (-8 * (number + 1) / power) for number in range(power)]
    return tuple(first + [2 ** (-4 * (number + 1) / power) for number in range(0, 2 * (heads - power), 2)])
