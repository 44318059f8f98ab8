"""The initialisation of decoders."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from zoo.initializer.base import Initializer, InitializerConfig


class Normal(Initializer):
    """Weights from a normal distribution, biases zero, norms one.

    Paper: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3 (`scale_residual`).
    """

    class Config(InitializerConfig):
        """Config of the `normal` initialisation."""

        type: Literal["normal"] = "normal"
        std: Annotated[float, Field(gt=0)] = 0.02
        """Standard deviation of the weights."""
        scale_residual: bool = False
        """Whether the last projection of each branch is drawn with std / sqrt(2 x depth), so that the tokens do not grow
        with the number of branches that are added to them (GPT-2)."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.residual: set[int] = set()  # weights of projections into the residual stream
        self.branches = 1

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> None:
        layers = getattr(getattr(model, "stack", None), "layers", None)
        if self.config.scale_residual and layers is not None:
            self.branches = 2 * len(layers)
            self.residual = {id(weight) for layer in layers for weight in last_weights(layer)}
        super().__call__(model)

    def linear(self, weight: Tensor, bias: Tensor | None) -> None:
        std = self.config.std
        nn.init.normal_(weight, std=std / self.branches**0.5 if id(weight) in self.residual else std)
        if bias is not None:
            nn.init.zeros_(bias)

    def patch(self, weight: Tensor, bias: Tensor | None) -> None:
        self.linear(weight, bias)

    def position(self, table: Tensor, std: float | None) -> None:
        nn.init.normal_(table, std=std or self.config.std)

    def token(self, token: Tensor, std: float | None = None) -> None:
        nn.init.normal_(token, std=std or self.config.std)


def last_weights(layer: nn.Module) -> list[Tensor]:
    """The weights of the projections that a part's branch ends with: those that processes divide by rows."""
    return [
        getattr(part, name).weight
        for part in layer.modules()
        for name, way in getattr(type(part), "sharding", {}).items()
        if way == "row"
    ]
