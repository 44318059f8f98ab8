"""What all stacks share."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

from zoo.config import Config
from zoo.config.base import PositiveInt


class Feature(NamedTuple):
    """A feature map that a stack can give."""

    state: int
    """Which hidden state it is: 0 is the input, n what the n-th block gives."""
    reduction: int
    """How many tokens of the input, along rows and columns, one of its tokens stands for."""
    channels: int
    """Size of its tokens' vectors."""


class StackConfig(Config):
    """Fields of every stack; they survive when an override changes its type."""

    kind: ClassVar[str] = "stack"

    width: PositiveInt
    """Size of a token's vector (of the first stage, where it grows)."""
