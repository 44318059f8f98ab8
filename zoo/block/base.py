"""What all blocks share."""

from __future__ import annotations

from typing import ClassVar

from zoo.config import Config


class BlockConfig(Config):
    """Fields of every block."""

    kind: ClassVar[str] = "block"
