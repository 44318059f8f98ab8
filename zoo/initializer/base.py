"""What all initialisations share: which tensor gets which treatment."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from zoo.config import Config


class InitializerConfig(Config):
    """Fields of every initialisation."""

    kind: ClassVar[str] = "initializer"


class Initializer:
    """Gives every parameter of a model its fresh value, in the order of its modules.

    Modules with parameters of their own (a class token, a position table) have a method
    `initialize(init)` that says which of the methods here treats which.
    """

    def __call__(self, model: nn.Module) -> None:
        self.draw(model)

    @torch.no_grad()
    def draw(self, model: nn.Module) -> None:
        """Draws the parameters of a module and of those inside it."""
        for module in model.modules():
            own = getattr(module, "initialize", None)
            if own is not None:
                own(self)
            elif isinstance(module, nn.Linear):
                self.linear(module.weight, module.bias)
            else:
                self.norm(module)

    def linear(self, weight: Tensor, bias: Tensor | None) -> None:
        """A projection (outputs, inputs) and its bias."""
        raise NotImplementedError

    def patch(self, weight: Tensor, bias: Tensor | None) -> None:
        """The projection of patches (width, channels, height, width of a patch) and its bias."""
        raise NotImplementedError

    def position(self, table: Tensor, std: float | None) -> None:
        """A position table; `std` is the deviation that its own config asks for."""
        raise NotImplementedError

    def token(self, token: Tensor, std: float | None = None) -> None:
        """A learned token; `std` is the deviation that its own part asks for."""
        raise NotImplementedError

    def table(self, table: Tensor, padding: int | None) -> None:
        """The vectors of tokens or segments (number, width); that of the token `padding`, if there is one, is zero."""
        self.token(table)
        if padding is not None:
            nn.init.zeros_(table[padding])

    def norm(self, module: nn.Module) -> None:
        """Weights one and biases zero."""
        for name, parameter in module.named_parameters(recurse=False):
            nn.init.constant_(parameter, 0.0 if name == "bias" else 1.0)
