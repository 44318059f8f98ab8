"""How many bits a model needs for a byte of text."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from zoo.extras import require

torchmetrics: Any = require("torchmetrics", "train", "training")


class BitsPerByte(torchmetrics.Metric):
    """The bits that an ideal coder would need with a model's probabilities, for each byte of the original text.

    Costs in nats are summed over all tokens, divided by ln 2 and by the sum of bytes. It is no number where the bytes are
    not known.
    """

    nats: Tensor
    size: Tensor
    is_differentiable, higher_is_better, full_state_update = False, False, False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("nats", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("size", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Adds the tokens of a step: predictions (tokens, 2), of each its cost in nats and its bytes."""
        nats, size = predictions.double().sum(0)
        self.nats, self.size = self.nats + nats, self.size + size

    def compute(self) -> Tensor:
        return (self.nats / math.log(2) / self.size).float()


__all__ = ["BitsPerByte"]
