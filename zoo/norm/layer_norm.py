"""Layer normalisation."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from zoo import kernel
from zoo.norm.base import NormConfig


class LayerNorm(nn.LayerNorm):
    """Layer normalisation over the width, with mean, deviation, weight and bias.

    Paper: Ba et al. 2016, https://arxiv.org/abs/1607.06450. Shapes: (..., width) -> (..., width).
    """

    class Config(NormConfig):
        """Config of `layer-norm`."""

        type: Literal["layer-norm"] = "layer-norm"
        bias: bool = True
        """Whether a learned bias is added."""

    def __init__(self, config: Config, *, width: int) -> None:
        super().__init__(width, eps=config.eps, bias=config.bias)

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:  # shapes have no values, and torch would take its time over them
            super().reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        return kernel.layer_norm(x, self.weight, self.bias, self.eps)

    def record(self, program: kernel.Program, at: kernel.Places, to: kernel.Places, add: bool = False) -> None:
        program.norm(at, to, self.weight, self.bias, self.eps, centred=True, add=add)
