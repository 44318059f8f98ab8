"""What all norms share."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from zoo.config import Config


class NormConfig(Config):
    """Fields of every norm."""

    kind: ClassVar[str] = "norm"

    eps: Annotated[float, Field(ge=0)] = 1e-6
    """Added to the variance before the square root."""
