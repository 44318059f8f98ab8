"""A learned table of positions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from zoo import kernel
from zoo.config import Problem
from zoo.config.base import Count, PositiveInt
from zoo.errors import InputError
from zoo.layout import Layout
from zoo.position.base import PositionConfig


class LearnedPosition(nn.Module):
    """A learned vector for each position, added to the tokens; resampled where images change size.

    Papers: Devlin et al. 2018, https://arxiv.org/abs/1810.04805;
    Dosovitskiy et al. 2020, https://arxiv.org/abs/2010.11929, section 3.1 and appendix D.4.
    Shapes: (batch, tokens, width) -> (batch, tokens, width).
    """

    class Config(PositionConfig):
        """Config of `learned` positions."""

        type: Literal["learned"] = "learned"
        length: PositiveInt | None = None
        """How many positions of a text have a vector; images have as many as the embedding has tokens."""
        unused: Count = 0
        """How many vectors that no position has stand before those of a text (BART has 2)."""
        resample: Literal["bicubic", "bicubic-antialias"] = "bicubic"
        """How the table becomes that of another grid: plain bicubic in the table's own precision, or
        bicubic with an antialiasing filter in float32."""
        square: bool = False
        """Read the table as a square grid when it is resampled, whatever the shape of the trained
        images; equal squares are then never resampled."""
        std: Annotated[float, Field(gt=0)] | None = None
        """Standard deviation of a fresh table (default: that of the model's initialisation)."""

        def problems(self, **context: Any) -> Iterator[Problem]:
            if self.length is not None and context.get("grid") is not None:
                yield ("length",), "images have as many positions as the embedding has tokens; leave it out"
            if self.unused and context.get("grid") is not None:
                yield ("unused",), "the table of an image has a vector for each token and no others; use 0"

    def __init__(
        self, config: Config, *, width: int, length: int, grid: tuple[int, int] | None = None, padding: int | None = None
    ) -> None:
        super().__init__()
        self.config, self.grid, self.length, self.unused = config, grid, length, config.unused
        self.padding = padding  # the position that padding has: its fresh vector is zero and gets no gradient
        self.table = nn.Parameter(torch.empty(config.unused + length, width))

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        return x + self.at(layout, x.shape[1])

    def at(self, layout: Layout, tokens: int) -> Tensor:
        """The table for these tokens (tokens, width), or (batch, tokens, width) where each text has its own positions."""
        if self.grid is None:
            return self._of_text(layout.positions, tokens, layout.past)
        if layout.grid is not None and layout.resample and self._differs(layout.grid, tokens):
            return resample(self.table, self._trained_grid(layout.prefix), layout.grid, layout.prefix, self.config)
        if tokens != self.length:
            raise InputError(f"{tokens} tokens, but the position table has {self.length} rows")
        return self.table

    def _of_text(self, positions: Tensor | None, tokens: int, past: int) -> Tensor:
        if positions is None:
            last = past + tokens - 1
        elif positions.numel() and kernel.readable(positions):
            last = int(positions.max())
            if int(positions.min()) < 0:
                raise InputError(f"position_ids: {int(positions.min())} is no position; the first is 0")
        else:
            last = -1
        if last >= self.length:
            raise InputError(f"position {last} is beyond the table of {self.length} learned positions")
        if positions is None:
            return self.table[self.unused + past : self.unused + past + tokens]
        return functional.embedding(positions + self.unused if self.unused else positions, self.table, padding_idx=self.padding)

    def initialize(self, init: Any) -> None:
        init.position(self.table, self.config.std)
        if self.padding is not None:
            nn.init.zeros_(self.table[self.padding])

    def adapted(self, name: str, table: Tensor, source: LearnedPosition) -> tuple[Tensor, str] | None:
        """A trained table of another grid as one of ours, or one of a shorter text as one of a longer; None where neither is.

        For longer texts the trained vectors are copied again and again, so that near tokens are where they were trained to be
        (Beltagy et al. 2020, https://arxiv.org/abs/2004.05150, section 5).
        """
        if self.grid is None and source.grid is None:
            return self._lengthened(table, source)
        if self.grid is None or source.grid is None:
            return None
        prefix = self.length - self.grid[0] * self.grid[1]
        if prefix != source.length - source.grid[0] * source.grid[1] or table.shape[1] != self.table.shape[1]:
            return None
        old, new = (f"{rows} x {columns}" for rows, columns in (source.grid, self.grid))
        note = f"{old} positions resampled ({self.config.resample}) to {new}"
        return resample(table, source.grid, self.grid, prefix, self.config), note

    def _lengthened(self, table: Tensor, source: LearnedPosition) -> tuple[Tensor, str] | None:
        first = 0 if self.padding is None else self.padding + 1  # positions that no token of a text has
        trained = source.length - first
        if (
            (self.padding, self.unused) != (source.padding, source.unused)
            or self.length <= source.length
            or trained < 1
            or table.shape[1] != self.table.shape[1]
        ):
            return None
        first += self.unused
        places = torch.arange(self.table.shape[0] - first) % trained + first
        return torch.cat([table[:first], table[places]]), f"{trained} positions copied again and again to {self.length - first}"

    def _differs(self, grid: tuple[int, int], tokens: int) -> bool:
        if self.config.square:  # equal numbers of patches from a square image count as the same grid
            return tokens != self.length or grid[0] != grid[1]
        return grid != self.grid

    def _trained_grid(self, prefix: int) -> tuple[int, int]:
        if not self.config.square and self.grid is not None:
            return self.grid
        side = math.isqrt(self.length - prefix)
        if side * side != self.length - prefix:
            raise InputError(f"a table of {self.length - prefix} positions is no square grid, so it cannot be resampled as one")
        return side, side

    def extra_repr(self) -> str:
        return f"length={self.length}, width={self.table.shape[1]}"


def resample(table: Tensor, old: tuple[int, int], new: tuple[int, int], prefix: int, config: LearnedPosition.Config) -> Tensor:
    """The table (prefix + old patches, width) for another grid of patches (prefix + new patches, width)."""
    antialias = config.resample == "bicubic-antialias"
    patches = table[prefix:].reshape(1, *old, -1).permute(0, 3, 1, 2)
    patches = functional.interpolate(
        patches.float() if antialias else patches, size=new, mode="bicubic", align_corners=False, antialias=antialias
    )
    patches = patches.permute(0, 2, 3, 1).flatten(0, 2).to(table.dtype)
    return torch.cat([table[:prefix], patches]) if prefix else patches
