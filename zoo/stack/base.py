"""What all stacks share."""

from __future__ import annotations

from typing import ClassVar

from zoo.config import Config
from zoo.config.base import PositiveInt


class StackConfig(Config):
    """Fields of every stack; they survive when an override changes its type."""

    kind: ClassVar[str] = "stack"

    width: PositiveInt
    """Size of a token's vector (of the first stage, where it grows)."""
