"""Attention within the windows of a grid."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from zoo import kernel
from zoo.attention.base import Attention, AttentionConfig
from zoo.config import Problem
from zoo.config.base import Pair
from zoo.errors import InputError
from zoo.kernel.weights import attention_weights, mixed
from zoo.layout import Layout, Memory


class WindowAttention(Attention):
    """Every patch attends to the patches of its window; windows that stand half a window further join what others divide.

    Class and register tokens, if there are any, see all tokens and are seen by all. A grid that is not whole windows is
    filled up on the right and below with zeros, which are attended to as they are in training (their keys and values are
    the biases of the projections). At `pattern`, weights are seen as (batch, windows, heads, tokens of a window, keys).
    Paper: Liu et al. 2021, https://arxiv.org/abs/2103.14030, section 3.2.
    Shapes: (batch, tokens, width) -> (batch, tokens, width). Cost: O(tokens x height x width of a window x width) time.
    """

    class Config(AttentionConfig):
        """Config of `window` attention."""

        type: Literal["window"] = "window"
        window: Pair = (7, 7)
        """Rows and columns of a window, in patches; one number for squares."""
        shift: bool = False
        """Whether the windows stand half a window further down and to the right, those at the edges being cut in parts."""
        small: Literal["still", "still-axis", "shift"] = "still"
        """What becomes of the shift where the grid is not larger than a window: there is none if that is so along either
        axis, none along that axis, or the windows are shifted all the same."""
        fill: Literal["before-shift", "after-shift"] = "before-shift"
        """Whether a grid that is not whole windows is filled up before it is shifted or behind it. In the second case rows
        from the upper edge meet the filling in one window."""

        windowed: ClassVar[bool] = True

        def problems(self, *, width: int, **context: Any) -> Iterator[Problem]:
            yield from super().problems(width=width, **context)
            if context.get("grid") is None:
                yield ("type",), "'window' attends within a grid of patches, and the tokens here form none that is whole"
            if self.causal:
                yield ("causal",), "patches of a grid stand in no order, so that none is before another"
            if self.position is not None and not getattr(self.position, "windowed", False):
                kind = getattr(self.position, "type")
                yield ("position",), f"{kind!r} counts places in a row; in windows use 'relative-2d' or none"

        def windows(self, grid: tuple[int, int]) -> kernel.Windows:
            """How a grid of so many rows and columns is cut into windows."""
            whole = [length <= side for length, side in zip(grid, self.window)]
            if not self.shift or (self.small == "still" and any(whole)):
                shift = (0, 0)
            elif self.small == "still-axis":
                shift = (0 if whole[0] else self.window[0] // 2, 0 if whole[1] else self.window[1] // 2)
            else:
                shift = (self.window[0] // 2, self.window[1] // 2)
            return kernel.Windows(grid, self.window, shift, self.fill == "before-shift")

    def __init__(self, config: Config, *, width: int) -> None:
        super().__init__(config, width=width)
        self.config = config

    def forward(
        self, x: Tensor, layout: Layout, *, memory: Memory | None = None, weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Attends from `x` (batch, tokens, width) to itself.

        Returns:
            The output (batch, tokens, width) and, if asked for, the attention weights (batch, heads, tokens, tokens), zero
            between windows; rows of a window with filling sum to less than one.

        Raises:
            InputError: the tokens form no grid, or a mask that says more than which tokens may be attended to.
        """
        if memory is not None:
            raise InputError("attention of type 'window' is one of tokens to themselves")
        if layout.grid is None or x.shape[1] != layout.prefix + layout.grid[0] * layout.grid[1]:
            raise InputError("attention of type 'window' needs a whole grid of patches, and these tokens form none")
        windows = self.config.windows(layout.grid)
        if windows.plain:
            return super().forward(x, layout._replace(windows=windows), weights=weights)
        first = layout.prefix
        moved = windows.moved(x[:, first:])
        moved = torch.cat([x[:, :first], moved], 1) if first else moved
        found, seen = super().forward(moved, layout._replace(windows=windows), weights=weights)
        patches = windows.back(found[:, first:])
        return (torch.cat([found[:, :first], patches], 1) if first else patches), seen

    def attend(self, query: Tensor, key: Tensor, value: Tensor, layout: Layout, weights: bool) -> tuple[Tensor, Tensor | None]:
        windows, first = layout.windows, layout.prefix
        assert isinstance(windows, kernel.Windows)
        dropout = self.dropout if self.training else 0.0
        near = [windows.cut(each[:, :, first:] if first else each) for each in (query, key, value)]
        if first:  # each window sees the tokens before the patches too
            for place, each in ((1, key), (2, value)):
                before = each[:, None, :, :first].expand(-1, near[0].shape[1], -1, -1, -1)
                near[place] = torch.cat([before, near[place]], 3)
        mask = self._mask(layout, windows, query)
        scores = self._scores(layout, windows, query, mask)
        seen = None
        if weights or self.pattern.watched:
            seen = self.pattern(kernel.window_weights(near[0], near[1], scores, self.scale))
            patches = mixed(seen.flatten(0, 1), near[2].flatten(0, 1), dropout).unflatten(0, seen.shape[:2])
        else:
            patches = kernel.window_attention(*near, scores=scores, scale=self.scale, dropout=dropout, masked=mask is not None)
        found = windows.joined(patches)
        whole = None
        if first:
            options: dict[str, Any] = {"mask": self._filling(layout, windows, query, mask), "scale": self.scale}
            found = torch.cat([kernel.attention(query[:, :, :first], key, value, dropout=dropout, **options), found], 2)
            whole = attention_weights(query[:, :, :first], key, **options) if weights else None
        return found, spread(seen, whole, windows) if weights and seen is not None else None

    def _scores(self, layout: Layout, windows: kernel.Windows, query: Tensor, mask: Tensor | None) -> Tensor | None:
        """What is added to the scores within windows: (batch or 1, windows or 1, heads or 1, tokens or 1, key tokens)."""
        if self.position is not None:
            scores = self.position.within(windows)[None].to(query.dtype)
        else:
            apart = kernel.regions(windows, query)
            scores = None if apart is None else apart[None]
        if scores is not None and layout.prefix:  # whose places have no bias
            scores = functional.pad(scores, (layout.prefix, 0))
        if mask is None:
            return scores
        near = windows.cut(mask[:, None, layout.prefix :, None])[..., 0][:, :, :, None]
        if layout.prefix:
            before = mask[:, None, None, None, : layout.prefix].expand(-1, near.shape[1], -1, -1, -1)
            near = torch.cat([before, near], -1)
        return near if scores is None else scores + near

    def _mask(self, layout: Layout, windows: kernel.Windows, query: Tensor) -> Tensor | None:
        """What the caller masks: (batch or 1, tokens of the moved grid), to be added to scores."""
        mask, first = layout.mask, layout.prefix
        if mask is None:
            return None
        if tuple(mask.shape[1:3]) != (1, 1):
            raise InputError("attention_mask: within windows it says which tokens are real, (batch, tokens); not which pairs")
        mask = mask[:, 0, 0]
        scores = mask if mask.is_floating_point() else torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, -math.inf)
        moved = windows.moved(scores[:, first:, None])[..., 0].to(query.dtype)
        return torch.cat([scores[:, :first].to(query.dtype), moved], 1) if first else moved

    def _filling(self, layout: Layout, windows: kernel.Windows, query: Tensor, mask: Tensor | None) -> Tensor | None:
        """What tokens before the patches may attend to: all but what fills the grid up, and what the caller masks."""
        real = kernel.real_places(windows, query.device)
        if real is None:
            return None if mask is None else mask[:, None, None]
        real = functional.pad(real, (layout.prefix, 0), value=True)[None, None, None]
        return real if mask is None else mask[:, None, None].masked_fill(~real, -math.inf)


def spread(seen: Tensor, whole: Tensor | None, windows: kernel.Windows) -> Tensor:
    """Weights within windows as those of all pairs of tokens, zero between windows.

    Shapes: (batch, windows, heads, tokens of a window, before + tokens of a window) -> (batch, heads, tokens, tokens).

    Args:
        whole: (batch, heads, before, before + padded tokens), the weights of the tokens before the patches.
    """
    batch, number, heads = seen.shape[:3]
    before, patches = (0 if whole is None else whole.shape[2]), windows.grid[0] * windows.grid[1]
    place = torch.arange(1, patches + 1, device=seen.device)[None, :, None]  # 0 stands for the filling
    at = windows.cut(windows.moved(place)[:, None])[0, :, 0, :, 0]
    first = torch.arange(1, before + 1, device=seen.device).expand(number, -1)
    columns = torch.cat([first, torch.where(at == 0, 0, at + before)], 1)
    pairs = (at[:, :, None] * (1 + before + patches) + columns[:, None, :]).flatten()
    flat = seen.new_zeros(batch, heads, (1 + patches) * (1 + before + patches))
    flat = flat.index_copy(2, pairs, seen.transpose(1, 2).flatten(2))
    found = flat.unflatten(2, (1 + patches, -1))[:, :, 1:, 1:]
    if whole is None:
        return found
    back = windows.back(whole[..., before:].flatten(0, 1).mT).mT.unflatten(0, (batch, heads))
    return torch.cat([torch.cat([whole[..., :before], back], -1), found], 2)
