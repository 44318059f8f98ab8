"""What the tokens of a batch are, beside their values."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor


class Layout(NamedTuple):
    """Built once per forward by the embedding and the model, read by positions, blocks and heads."""

    prefix: int = 0
    """How many class and register tokens stand before the patches."""
    grid: tuple[int, int] | None = None
    """Rows and columns of the patches behind the prefix; None where tokens form no grid."""
    resample: bool = False
    """Whether a position table may be resampled to this grid."""
    positions: Tensor | None = None
    """(batch or 1, tokens), the place of each token in its text; None where they are 0, 1, 2, ..."""
    texts: Tensor | None = None
    """(batch, tokens), which of several texts packed into a row each token belongs to; None where a row is one."""
    choices: int | None = None
    """How many rows, one after another, are the choices of one question; None where rows are examples."""
    table: Tensor | None = None
    """(vocabulary, width), the vectors of the embedding, by which tied heads score tokens."""
    real: Tensor | None = None
    """(batch, tokens), true where a token is none of padding; None where all are real, or nobody says."""
    mask: Tensor | None = None
    """What each token may attend to, as (batch, 1, 1 or tokens, tokens): true, or a float to be added to the scores;
    None where every token may attend to every other."""
    lengths: tuple[int, ...] | None = None
    """Of the texts that stand one after another in a single row, where padding is left out; None elsewhere."""
    shared: dict[Any, Any] | None = None
    """What the layers of one forward share, made by the first that needs it, such as a mask in the kernel's form."""
