"""What all heads share."""

from __future__ import annotations

from typing import ClassVar

from zoo.config import Config


class HeadConfig(Config):
    """Fields of every head."""

    kind: ClassVar[str] = "head"
    context: ClassVar[tuple[str, ...]] = ("width",)
    """With what the part is built beside its config: the `width`, the `vocabulary` of the embedding, the `norm` of the
    blocks."""
