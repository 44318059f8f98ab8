"""The initialisation of T5."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from zoo.initializer.base import Initializer, InitializerConfig


class FanIn(Initializer):
    """Weights from normal distributions with a deviation of 1 / sqrt(inputs), biases zero, norms one, vectors of tokens 1.

    Queries have one of 1 / sqrt(inputs x head_size), which does what scaling the scores would do, and a table of positions
    has 1 / sqrt(width). Paper: Raffel et al. 2020, https://arxiv.org/abs/1910.10683 (the code that came with it).
    """

    class Config(InitializerConfig):
        """Config of the `fan-in` initialisation."""

        type: Literal["fan-in"] = "fan-in"
        factor: Annotated[float, Field(gt=0)] = 1.0
        """By what all deviations are multiplied, and the ones of norms."""

    def __init__(self, config: Config) -> None:
        self.factor = config.factor
        self.width: int | None = None
        self.head_sizes: dict[int, int] = {}  # by the weights of queries

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> None:
        stack: Any = getattr(model, "stack", None)
        self.width = getattr(stack, "width", None)
        for part in model.modules():
            query, size = getattr(part, "query", None), getattr(part, "head_size", None)
            if isinstance(query, nn.Linear) and isinstance(size, int):
                self.head_sizes[id(query.weight)] = size
        super().__call__(model)

    def linear(self, weight: Tensor, bias: Tensor | None) -> None:
        self._draw(weight, (weight.shape[1] * self.head_sizes.get(id(weight), 1)) ** -0.5)
        if bias is not None:
            nn.init.zeros_(bias)

    def patch(self, weight: Tensor, bias: Tensor | None) -> None:
        self._draw(weight, weight[0].numel() ** -0.5)
        if bias is not None:
            nn.init.zeros_(bias)

    def position(self, table: Tensor, std: float | None) -> None:
        self._draw(table, std or (self.width or table.shape[-1]) ** -0.5)

    def token(self, token: Tensor, std: float | None = None) -> None:
        self._draw(token, std or 1.0)

    def norm(self, module: nn.Module) -> None:
        for name, parameter in module.named_parameters(recurse=False):
            nn.init.constant_(parameter, 0.0 if name == "bias" else self.factor)

    def _draw(self, tensor: Tensor, std: float) -> None:
        nn.init.normal_(tensor, std=std * self.factor)
