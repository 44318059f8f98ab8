"""What all runs share."""

from __future__ import annotations

from typing import ClassVar

from zoo.config import Config


class RunConfig(Config):
    """Fields of every run."""

    kind: ClassVar[str] = "run"
