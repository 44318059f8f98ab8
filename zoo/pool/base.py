"""What all pools share."""

from __future__ import annotations

from typing import ClassVar

from zoo.config import Config


class PoolConfig(Config):
    """Fields of every pool."""

    kind: ClassVar[str] = "pool"
