"""Feed-forwards with a gate: SwiGLU, GEGLU and their relatives."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional

from zoo import kernel
from zoo.activation import Activation
from zoo.feedforward.base import FeedForwardConfig
from zoo.registry import make


class GatedFeedForward(nn.Module):
    """Gated feed-forward: down(activation(gate(x)) * up(x)); SwiGLU with silu, GEGLU with gelu.

    Paper: Shazeer 2020, https://arxiv.org/abs/2002.05202.
    Shapes: (..., width) -> (..., width). Cost: 3 x width x hidden products per token.
    """

    class Config(FeedForwardConfig):
        """Config of `gated`."""

        type: Literal["gated"] = "gated"
        activation: Activation = "silu"
        """The non-linearity of the gate: silu makes it SwiGLU, gelu GEGLU."""

    sharding: ClassVar[dict[str, str]] = {"gate": "column", "up": "column", "norm": "whole", "down": "row"}
    """How tensor-parallel processes divide it: see `zoo.training.sharding`."""

    def __init__(self, config: Config, *, width: int) -> None:
        super().__init__()
        hidden = config.inner(width)
        self.activation, self.dropout = config.activation, config.dropout
        self.gate = kernel.Linear(width, hidden, config.bias)
        self.up = kernel.Linear(width, hidden, config.bias)
        self.norm = make(config.norm, width=hidden)
        self.down = kernel.Linear(hidden, width, config.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.norm is None:
            return kernel.gated(x, self.gate, self.up, self.activation, self.down, self.dropout, self.training)
        hidden = kernel.activation(self.activation)(self.gate(x)) * self.up(x)
        down: Tensor = self.down(self.norm(functional.dropout(hidden, self.dropout, self.training)))
        return down

    def record(self, program: kernel.Program, at: kernel.Places, to: kernel.Places, add: bool = False) -> None:
        if self.norm is not None:
            program.refuse()
        hidden = program.place(self.up.out_features)
        program.product(at, hidden, self.gate, activation=self.activation)
        program.product(at, hidden, self.up, multiply=True)
        program.product(hidden, to, self.down, add=add)
