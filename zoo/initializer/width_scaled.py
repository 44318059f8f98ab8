"""The initialisation of CLIP."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from zoo.initializer.base import Initializer, InitializerConfig
from zoo.initializer.normal import last_weights


class WidthScaled(Initializer):
    """Weights from normal distributions whose deviations follow from width and depth, biases zero, norms one.

    A projection has a deviation of 1 / sqrt(width), the first layer of a feed-forward of 1 / sqrt(2 x width), the last
    projection of each branch of 1 / sqrt(2 x depth x width), a class token and a table of positions of 1 / sqrt(width).
    Paper: Radford et al. 2021, https://arxiv.org/abs/2103.00020 (the code that came with it).
    """

    class Config(InitializerConfig):
        """Config of the `width-scaled` initialisation."""

        type: Literal["width-scaled"] = "width-scaled"
        std: Annotated[float, Field(gt=0)] = 0.02
        """Standard deviation of the vectors of tokens and of the projection of patches."""
        factor: Annotated[float, Field(gt=0)] = 1.0
        """By what all deviations are multiplied."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.known: dict[int, float] = {}  # the deviations of weights that know their place in a block

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> None:
        layers = getattr(getattr(model, "stack", None), "layers", ())
        for layer in layers:
            inner = getattr(layer, "feedforward", None)
            for module in inner.modules() if isinstance(inner, nn.Module) else ():
                if isinstance(module, nn.Linear):
                    self.known[id(module.weight)] = (2 * module.in_features) ** -0.5
            for weight in last_weights(layer):
                self.known[id(weight)] = (2 * len(layers) * weight.shape[0]) ** -0.5
        super().__call__(model)

    def linear(self, weight: Tensor, bias: Tensor | None) -> None:
        self._draw(weight, self.known.get(id(weight), weight.shape[1] ** -0.5))
        if bias is not None:
            nn.init.zeros_(bias)

    def patch(self, weight: Tensor, bias: Tensor | None) -> None:
        self._draw(weight, self.config.std)
        if bias is not None:
            nn.init.zeros_(bias)

    def position(self, table: Tensor, std: float | None) -> None:
        self._draw(table, std or table.shape[1] ** -0.5)

    def token(self, token: Tensor, std: float | None = None) -> None:
        self._draw(token, std or token.shape[-1] ** -0.5)

    def table(self, table: Tensor, padding: int | None) -> None:
        self._draw(table, self.config.std)
        if padding is not None:
            nn.init.zeros_(table[padding])

    def _draw(self, tensor: Tensor, std: float) -> None:
        nn.init.normal_(tensor, std=std * self.config.factor)
