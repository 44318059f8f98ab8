"""Four neighbouring tokens become one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo import kernel
from zoo.errors import InputError
from zoo.layout import Layout
from zoo.registry import make


class PatchMerging(nn.Module):
    """Joins the tokens of each 2 x 2 neighbours, norms them and projects them to twice the width.

    A grid of odd size is filled up with zeros on the right and below. Paper: Liu et al. 2021,
    https://arxiv.org/abs/2103.14030, section 3.1.
    Shapes: (batch, rows x columns, width) -> (batch, ceil(rows / 2) x ceil(columns / 2), 2 x width).
    """

    def __init__(self, norm: Any, *, width: int) -> None:
        super().__init__()
        self.norm = make(norm, width=4 * width)
        self.reduction = kernel.Linear(4 * width, 2 * width, False)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        if layout.grid is None or x.shape[1] != layout.grid[0] * layout.grid[1]:
            raise InputError("tokens are merged by rows and columns, and these form no whole grid")
        x = x.unflatten(1, layout.grid)
        below, right = (length % 2 for length in layout.grid)
        if below or right:
            x = functional.pad(x, (0, 0, 0, right, 0, below))
        # upper left, lower left, upper right, lower right
        x = torch.cat([x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], -1).flatten(1, 2)
        merged: Tensor = self.reduction(x if self.norm is None else self.norm(x))
        return merged


def merged_grid(grid: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns behind a merging."""
    return (grid[0] + 1) // 2, (grid[1] + 1) // 2
