"""Scores that fall with the distance."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from zoo import kernel
from zoo.config import Problem
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
        form: Literal["distance", "place"] = "distance"
        """What the slope multiplies: the distance, which is taken off; or the key's own place, which is added. In causal
        attention the two differ by the same for all keys of a query, which changes no weight, but they are rounded
        differently (Falcon, BLOOM)."""
        count: Literal["all", "unpadded"] = "all"
        """How places are numbered: all tokens of a row, or only those that are no padding (Falcon, BLOOM)."""
        rounding: Literal["float32", "bfloat16"] = "float32"
        """To what slopes, places and their products are rounded. Falcon's are bfloat16: from the 256th place on, neighbours
        share a place."""
        scaled: bool = False
        """Whether the product is scaled by 1 / sqrt(head_size), as scores are (Falcon)."""

        where: ClassVar[Literal["embedding", "attention"]] = "attention"

        def problems(self, *, causal: bool = True, **context: Any) -> Iterator[Problem]:
            if self.form == "place" and not causal:
                yield ("form",), "a key's own place says nothing of its distance unless attention is causal; use 'distance'"

    relative = True
    sharding: ClassVar[dict[str, str]] = {"slopes": "heads"}
    """How tensor-parallel processes divide it: see `zoo.training.sharding`."""

    def __init__(self, config: Config, *, head_size: int, heads: int) -> None:
        super().__init__()
        self.config, self.heads, self.head_size = config, heads, head_size
        self.slopes = slopes(heads)
        self.name = ("alibi", heads, head_size if config.scaled else None, config.model_dump_json())
        self._warned = False

    @property
    def identity(self) -> Hashable:
        return self.name

    def turned(self, query: Tensor, key: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        self._warned = self._warned or warn_beyond(self.config.length, layout, query.shape[2])
        return query, key

    def key_places(self, layout: Layout, keys: int, device: torch.device) -> Tensor:
        plain = torch.arange(keys, device=device)[None]
        mask = layout.mask
        if self.config.count == "all" or mask is None or mask.dtype != torch.bool or mask.shape[1:3] != (1, 1):
            return plain
        real = mask[:, 0, 0].long()
        return (real.cumsum(1) - 1) * real

    def record(self, program: kernel.Program) -> tuple[int, bool]:
        return 0, False

    def bias(self, query_at: Tensor, key_at: Tensor) -> Tensor:
        dtype = getattr(torch, self.config.rounding)
        steep = torch.tensor(self.slopes, dtype=torch.float32, device=key_at.device).to(dtype)[:, None, None]
        if self.config.form == "place":
            bias = steep * key_at[:, None, None, :].to(dtype)
            bias = bias.expand(-1, -1, query_at.shape[1], -1)
        else:
            bias = -steep * (query_at[:, :, None] - key_at[:, None, :]).abs()[:, None].to(dtype)
        # the quotient in double precision, which whatever type the scores have rounds once
        return bias.double() / math.sqrt(self.head_size) if self.config.scaled else bias.float()

    def extra_repr(self) -> str:
        return f"heads={self.heads}"


def slopes(heads: int) -> tuple[float, ...]:
    """By how much the score of each head falls from one place to the next."""
    power = 2 ** math.floor(math.log2(heads))
    first = [2 ** (-8 * (number + 1) / power) for number in range(power)]
    return tuple(first + [2 ** (-4 * (number + 1) / power) for number in range(0, 2 * (heads - power), 2)])
