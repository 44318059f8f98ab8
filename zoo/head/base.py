"""What all heads share."""

from __future__ import annotations

from typing import ClassVar

from zoo.config import Config


class HeadConfig(Config):
    """Fields of every head."""

    kind: ClassVar[str] = "head"
