"""Stochastic depth."""

from __future__ import annotations

from torch import Tensor, nn


class DropPath(nn.Module):
    """Drops a whole branch of a residual block for some examples of the batch, in training.

    What stays is scaled by 1 / (1 - rate). Paper: Huang et al. 2016, https://arxiv.org/abs/1603.09382.
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return branch
        keep = 1.0 - self.rate
        mask = branch.new_empty((branch.shape[0],) + (1,) * (branch.ndim - 1)).bernoulli_(keep)
        return branch * (mask / keep if keep > 0.0 else mask)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3g}"
