"""What all feed-forwards share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

from pydantic import Field

from zoo.activation import Activation
from zoo.config import Config, Problem, Slot
from zoo.config.base import LARGEST, PositiveInt, Probability


class FeedForwardConfig(Config):
    """Fields of every feed-forward; they survive when an override changes its type."""

    kind: ClassVar[str] = "feedforward"

    hidden: PositiveInt | None = None
    """Inner width (default: ratio x width, rounded down)."""
    ratio: Annotated[float, Field(gt=0, le=LARGEST)] = 4.0
    """Inner width as a multiple of the width, where `hidden` is not given."""
    activation: Activation = "gelu"
    """The non-linearity: gelu (exact), gelu-tanh, quick-gelu, relu, silu, ..."""
    bias: bool = True
    """Whether the projections have biases."""
    dropout: Probability = 0.0
    """Share of inner values dropped in training."""
    norm: Annotated[Config | None, Slot("norm", optional=True)] = None
    """A norm over the inner width, before the last projection."""

    def inner(self, width: int) -> int:
        """The inner width for a model of this width."""
        return self.hidden if self.hidden is not None else int(width * self.ratio)

    def problems(self, *, width: int, **context: Any) -> Iterator[Problem]:
        if not 1 <= self.inner(width) <= LARGEST:
            yield ("ratio",), f"{self.ratio} x width {width} is no inner width: expected 1 to {LARGEST}"
