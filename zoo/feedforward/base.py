"""What all feed-forwards share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from zoo import kernel
from zoo.config import Config, Problem, Slot
from zoo.config.base import PositiveInt, Probability, literal
from zoo.errors import did_you_mean, one_of


class FeedForwardConfig(Config):
    """Fields of every feed-forward; they survive when an override changes its type."""

    kind: ClassVar[str] = "feedforward"

    hidden: PositiveInt | None = None
    """Inner width (default: ratio x width, rounded down)."""
    ratio: Annotated[float, Field(gt=0)] = 4.0
    """Inner width as a multiple of the width, where `hidden` is not given."""
    activation: str = "gelu"
    """The non-linearity: gelu (exact), gelu-tanh, quick-gelu, relu, silu, ..."""
    bias: bool = True
    """Whether the projections have biases."""
    dropout: Probability = 0.0
    """Share of inner values dropped in training."""
    norm: Annotated[Config | None, Slot("norm", optional=True)] = None
    """A norm over the inner width, before the last projection."""

    @field_validator("activation")
    @classmethod
    def _known_activation(cls, name: str) -> str:
        return known_activation(name)

    def inner(self, width: int) -> int:
        """The inner width for a model of this width."""
        return self.hidden if self.hidden is not None else int(width * self.ratio)

    def problems(self, *, width: int, **context: Any) -> Iterator[Problem]:
        if self.inner(width) < 1:
            yield ("ratio",), f"{self.ratio} x width {width} leaves no inner width"


def known_activation(name: str) -> str:
    """`name`, if the kernel has an activation of that name."""
    if name not in kernel.ACTIVATIONS:
        hint = did_you_mean(name, kernel.ACTIVATIONS) or f"; expected {one_of(kernel.ACTIVATIONS)}"
        raise PydanticCustomError("config", literal(f"unknown activation {name!r}{hint}"))
    return name
