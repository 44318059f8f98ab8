"""Weights of which a process holds a share, when several train one model."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def share(weight: Any) -> Tensor:
    """What this process holds of a weight, gradients included: all of it, unless it is a torch DTensor."""
    return weight.to_local() if hasattr(weight, "to_local") else weight  # type: ignore[no-any-return]


__all__ = ["share"]
