"""Fixed sines and cosines as positions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from zoo.config.base import PositiveInt
from zoo.layout import Layout
from zoo.position.base import PositionConfig


class SinusoidalPosition(nn.Module):
    """Sines and cosines of falling frequency, added to the tokens; nothing is learned, any length works.

    Paper: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 3.5.
    Shapes: (batch, tokens, width) -> (batch, tokens, width).
    """

    class Config(PositionConfig):
        """Config of `sinusoidal` positions."""

        type: Literal["sinusoidal"] = "sinusoidal"
        base: Annotated[float, Field(gt=1)] = 10000.0
        """Ratio of the slowest wavelength to the fastest."""
        order: Literal["interleaved", "halves"] = "interleaved"
        """Sine and cosine of a frequency side by side (the paper), or all sines before all cosines."""
        length: PositiveInt | None = None
        """How many positions the model was trained on, if that is known; nothing depends on it."""

    def __init__(
        self,
        config: Config,
        *,
        width: int,
        length: int | None = None,
        grid: tuple[int, int] | None = None,
        padding: int | None = None,
    ) -> None:
        super().__init__()
        self.config, self.width = config, width

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        return x + self.at(layout, x.shape[1], x.device).to(x.dtype)

    def at(self, layout: Layout, tokens: int, device: Any = None) -> Tensor:
        """The vectors of these tokens, (tokens, width) or (batch, tokens, width), rounded to float32."""
        # angles in float64: in less, positions of some thousands already lose digits
        first = torch.arange(layout.past, layout.past + tokens, dtype=torch.float64, device=device)
        position = (first if layout.positions is None else layout.positions.to(torch.float64))[..., None]
        exponent = torch.arange(0, self.width, 2, dtype=torch.float64, device=device) / self.width
        angle = position / self.config.base**exponent
        sine, cosine = angle.sin(), angle.cos()[..., : self.width // 2]
        if self.config.order == "halves":
            return torch.cat([sine, cosine], dim=-1).float()
        table = torch.empty(*angle.shape[:-1], self.width, dtype=torch.float64, device=device)
        table[..., 0::2], table[..., 1::2] = sine, cosine
        return table.float()

    def extra_repr(self) -> str:
        return f"width={self.width}, order={self.config.order}"
