"""What all embeddings share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from zoo.config import Config, Problem


class EmbeddingConfig(Config):
    """Fields of every embedding."""

    kind: ClassVar[str] = "embedding"


def misplaced(position: Any) -> Iterator[Problem]:
    """What is wrong with a position that is not one to be added to tokens."""
    if getattr(position, "where", "embedding") != "embedding":
        yield ("position",), f"{position.type!r} acts inside of attention, so it stands at stack.block.attention.position"
