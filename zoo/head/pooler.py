"""One vector for the whole input."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor, nn

from zoo import kernel
from zoo.activation import Activation
from zoo.config import Config, Problem, Slot, within
from zoo.config.base import PositiveInt
from zoo.head.base import HeadConfig
from zoo.layout import Layout
from zoo.registry import make


class Pooler(nn.Module):
    """Pools the tokens, then a linear layer and an activation, if it is asked for.

    Shapes: (batch, tokens, width) -> (batch, size).
    Paper: Devlin et al. 2018, https://arxiv.org/abs/1810.04805 (the next-sentence vector).
    """

    class Config(HeadConfig):
        """Config of the `pooler` head."""

        type: Literal["pooler"] = "pooler"
        size: PositiveInt | None = None
        """Size of the vector (default: the width)."""
        projection: bool = True
        """Whether there is a linear layer; without one, the vector is what the pool gives."""
        activation: Activation = "tanh"
        """The non-linearity behind the linear layer."""
        pool: Annotated[Config, Slot("pool", default="class-token")] = Field(default="class-token", validate_default=True)
        """How the tokens become one vector."""
        norm: Annotated[Config | None, Slot("norm", default="layer-norm", optional=True)] = None
        """A norm of the pooled vector, before the linear layer."""

        def problems(self, *, width: int, **context: Any) -> Iterator[Problem]:
            yield from within("pool", self.pool.problems(width=width, **context))
            if self.norm is not None:
                yield from within("norm", self.norm.problems(width=width, **context))
            if not self.projection and self.size not in (None, width):
                yield ("size",), f"without a projection the vector has the size of the tokens, {width}"

    def __init__(self, config: Config, *, width: int) -> None:
        super().__init__()
        self.pool = make(config.pool, width=width)
        self.norm = make(config.norm, width=width)
        self.output = kernel.Linear(width, config.size or width) if config.projection else None
        self.activation = config.activation

    def forward(self, x: Tensor, layout: Layout) -> dict[str, Tensor]:
        pooled = self.pool(x, layout)
        pooled = pooled if self.norm is None else self.norm(pooled)
        if self.output is not None:
            pooled = kernel.activation(self.activation)(self.output(pooled))
        return {"pooler_output": pooled}
