"""How much of what a model writes is right."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.extras import require

torchmetrics: Any = require("torchmetrics", "train", "training")


class Right(torchmetrics.Metric):
    """The share of tokens, or of whole targets, that are right.

    Args:
        column: of the predictions that `SequenceToSequence.step` makes: 0 for tokens, 1 for targets.
    """

    hits: Tensor
    number: Tensor
    is_differentiable, higher_is_better, full_state_update = False, True, False

    def __init__(self, column: int) -> None:
        super().__init__()
        self.column = column
        self.add_state("hits", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("number", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Adds the tokens of a step: predictions (tokens, 2) and targets (tokens,)."""
        said = predictions[:, self.column]
        hits, asked = (said == targets, said >= 0) if self.column == 0 else (said == 1, said >= 0)
        self.hits, self.number = self.hits + hits.sum(), self.number + asked.sum()

    def compute(self) -> Tensor:
        return self.hits.float() / self.number


__all__ = ["Right"]
