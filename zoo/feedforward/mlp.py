"""The feed-forward of the original Transformer."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional

from zoo import kernel
from zoo.feedforward.base import FeedForwardConfig
from zoo.registry import make


class MLP(nn.Module):
    """Two linear layers with an activation between them: down(activation(up(x))).

    Paper: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 3.3.
    Shapes: (..., width) -> (..., width). Cost: 2 x width x hidden products per token.
    """

    class Config(FeedForwardConfig):
        """Config of `mlp`."""

        type: Literal["mlp"] = "mlp"

    sharding: ClassVar[dict[str, str]] = {"up": "column", "norm": "whole", "down": "row"}
    """How tensor-parallel processes divide it: see `zoo.training.sharding`."""

    def __init__(self, config: Config, *, width: int) -> None:
        super().__init__()
        hidden = config.inner(width)
        self.activation, self.dropout = config.activation, config.dropout
        self.up = kernel.Linear(width, hidden, config.bias)
        self.norm = make(config.norm, width=hidden)
        self.down = kernel.Linear(hidden, width, config.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.norm is None:
            return kernel.mlp(x, self.up, self.activation, self.down, self.dropout, self.training)
        hidden = functional.dropout(kernel.activation(self.activation)(self.up(x)), self.dropout, self.training)
        down: Tensor = self.down(self.norm(hidden))
        return down

    def record(self, program: kernel.Program, at: kernel.Places, to: kernel.Places, add: bool = False) -> None:
        if self.norm is not None:
            program.refuse()
        hidden = program.place(self.up.out_features)
        program.product(at, hidden, self.up, activation=self.activation)
        program.product(hidden, to, self.down, add=add)
