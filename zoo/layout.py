"""What the tokens of a batch are, beside their values."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Layout(NamedTuple):
    """Built once per forward by the embedding and the model, read by positions, blocks and heads."""

    prefix: int = 0
    """How many class and register tokens stand before the patches."""
    grid: tuple[int, int] | None = None
    """Rows and columns of the patches behind the prefix; None where tokens form no grid."""
    resample: bool = False
    """Whether a position table may be resampled to this grid."""
    mask: Tensor | None = None
    """(batch, 1, 1, tokens), true where a token may be attended to; None where all may."""
