"""The initialisation of the Vision Transformer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from zoo.initializer.base import Initializer, InitializerConfig


class TruncatedNormal(Initializer):
    """Weights from a normal distribution cut at two, biases zero, norms one.

    Papers: Dosovitskiy et al. 2020, https://arxiv.org/abs/2010.11929; Touvron et al. 2020,
    https://arxiv.org/abs/2012.12877, section 6.
    """

    class Config(InitializerConfig):
        """Config of the `truncated-normal` initialisation."""

        type: Literal["truncated-normal"] = "truncated-normal"
        std: Annotated[float, Field(gt=0)] = 0.02
        """Standard deviation of the weights."""
        position_std: Annotated[float, Field(gt=0)] | None = None
        """Standard deviation of position tables (default: std)."""
        token_std: Annotated[float, Field(gt=0)] | None = None
        """Standard deviation of class and register tokens (default: std)."""
        patches: Literal["normal", "uniform"] = "normal"
        """The projection of patches: as the other weights, or weight and bias uniform within
        1 / sqrt(inputs), as torch makes a convolution."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def linear(self, weight: Tensor, bias: Tensor | None) -> None:
        _draw(weight, self.config.std)
        if bias is not None:
            nn.init.zeros_(bias)

    def patch(self, weight: Tensor, bias: Tensor | None) -> None:
        if self.config.patches == "normal":
            self.linear(weight, bias)
            return
        bound = weight[0].numel() ** -0.5
        nn.init.uniform_(weight, -bound, bound)
        if bias is not None:
            nn.init.uniform_(bias, -bound, bound)

    def position(self, table: Tensor, std: float | None) -> None:
        _draw(table, std or self.config.position_std or self.config.std)

    def token(self, token: Tensor, std: float | None = None) -> None:
        _draw(token, std or self.config.token_std or self.config.std)


def _draw(tensor: Tensor, std: float, cut: float = 2.0) -> None:
    if std * 8 < cut:  # beyond eight deviations float32 draws nothing: the cut changes no value
        nn.init.normal_(tensor, std=std)
    else:
        nn.init.trunc_normal_(tensor, std=std, a=-cut, b=cut)
