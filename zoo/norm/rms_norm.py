"""Root-mean-square normalisation."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from zoo import kernel
from zoo.norm.base import NormConfig


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over the width: no mean is taken off and no bias added.

    Paper: Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467. Shapes: (..., width) -> (..., width).
    """

    class Config(NormConfig):
        """Config of `rms-norm`."""

        type: Literal["rms-norm"] = "rms-norm"
        precision: Literal["same", "float32", "float32-mean"] = "same"
        """In which type tokens are normalised: their own, or float32 whatever theirs is, rounded to theirs before they are
        weighted (Llama), or float32 for the mean of their squares alone (T5). In float32 there is no difference."""

    def __init__(self, config: Config, *, width: int) -> None:
        super().__init__()
        self.eps, self.precision = config.eps, config.precision
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        if self.precision == "same" or x.dtype == torch.float32:
            return kernel.rms_norm(x, self.weight, self.eps)
        single = x.float()
        root = torch.rsqrt(single.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * ((x if self.precision == "float32-mean" else single) * root).to(x.dtype)

    def record(self, program: kernel.Program, at: kernel.Places, to: kernel.Places, add: bool = False) -> None:
        program.norm(at, to, self.weight, None, self.eps, centred=False, add=add)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"
