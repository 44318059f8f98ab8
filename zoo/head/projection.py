"""One vector for the whole input, in a space that it shares with inputs of another kind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor, nn

from zoo import kernel
from zoo.config import Config, Problem, Slot, within
from zoo.config.base import PositiveInt
from zoo.head.base import HeadConfig
from zoo.layout import Layout
from zoo.registry import make


class Projection(nn.Module):
    """Pools the tokens and maps the vector into a space where images and texts are compared.

    Shapes: (batch, tokens, width) -> image_embeds or text_embeds (batch, size), of any length; a `dual-encoder` brings them
    to length one. Paper: Radford et al. 2021, https://arxiv.org/abs/2103.00020, section 2.3.
    """

    class Config(HeadConfig):
        """Config of the `projection` head."""

        type: Literal["projection"] = "projection"
        size: PositiveInt | None = None
        """Size of the vector (default: the width, and there is no linear layer)."""
        pool: Annotated[Config, Slot("pool", default="class-token")] = Field(default="class-token", validate_default=True)
        """How the tokens become one vector."""
        norm: Annotated[Config | None, Slot("norm", default="layer-norm", optional=True)] = None
        """A norm of the pooled vector."""
        bias: bool = False
        """Whether the linear layer has a bias."""

        def problems(self, *, width: int, **context: Any) -> Iterator[Problem]:
            yield from within("pool", self.pool.problems(width=width, **context))
            if self.norm is not None:
                yield from within("norm", self.norm.problems(width=width, **context))
            if self.bias and self.size is None:
                yield ("bias",), "without a size there is no linear layer, and so no bias"

    def __init__(self, config: Config, *, width: int) -> None:
        super().__init__()
        self.pool = make(config.pool, width=width)
        self.norm = make(config.norm, width=width)
        self.output = kernel.Linear(width, config.size, config.bias) if config.size is not None else None

    def forward(self, x: Tensor, layout: Layout) -> dict[str, Tensor]:
        vector = self.pool(x, layout)
        vector = vector if self.norm is None else self.norm(vector)
        vector = vector if self.output is None else self.output(vector)
        return {"image_embeds" if layout.ids is None else "text_embeds": vector}
