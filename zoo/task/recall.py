"""How often the right one comes first."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.extras import require

torchmetrics: Any = require("torchmetrics", "train", "training")


class Recall(torchmetrics.Metric):
    """The share of choices that are the right ones, among choices whose number may change.

    Args:
        column: of the targets; all columns of predictions from the same on are compared with it up to the next target's,
            the last one with all that are left.
    """

    hits: Tensor
    number: Tensor
    is_differentiable, higher_is_better, full_state_update = False, True, False

    def __init__(self, column: int = 0) -> None:
        super().__init__()
        self.column = column
        self.add_state("hits", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("number", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Adds choices (examples, columns) and the right ones (examples, targets)."""
        last = None if self.column + 1 == targets.shape[1] else self.column + 1
        hits = predictions[:, self.column : last] == targets[:, self.column, None]
        self.hits, self.number = self.hits + hits.sum(), self.number + hits.numel()

    def compute(self) -> Tensor:
        return self.hits.float() / self.number


__all__ = ["Recall"]
