"""What all positions share."""

from __future__ import annotations

from typing import ClassVar

from zoo.config import Config


class PositionConfig(Config):
    """Fields of every position."""

    kind: ClassVar[str] = "position"
