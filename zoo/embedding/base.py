"""What all embeddings share."""

from __future__ import annotations

from typing import ClassVar

from zoo.config import Config


class EmbeddingConfig(Config):
    """Fields of every embedding."""

    kind: ClassVar[str] = "embedding"
