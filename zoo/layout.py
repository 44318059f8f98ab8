"""What the tokens of a batch are, beside their values."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Memory(NamedTuple):
    """The tokens of another sequence, such as an encoder's, that cross-attention looks at."""

    tokens: Tensor | None = None
    """(batch, others, width); None where each layer's cache has its keys and values already."""
    mask: Tensor | None = None
    """What may be attended to of them, as `Layout.mask`: (batch, 1, 1 or tokens, others)."""


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
    ids: Tensor | None = None
    """(batch, tokens), the tokens of a text themselves."""
    past: int = 0
    """How many tokens stand before these, in the cache."""
    cache: Any = None
    """The keys and values of earlier tokens (`zoo.cache`): of all layers in the model, of its own layer in a block; None
    where nothing is kept."""
    table: Tensor | None = None
    """(vocabulary, width), the vectors of the embedding, by which tied heads score tokens."""
    real: Tensor | None = None
    """(batch, tokens), true where a token is none of padding; None where all are real, or nobody says."""
    mask: Tensor | None = None
    """What the caller lets each token attend to, as (batch, 1, 1 or tokens, past + tokens): true, or a float to be added to
    the scores; None where all may be attended to. Of packed texts it says nothing: see `allowed`."""
    global_tokens: Any = None
    """(batch, tokens), true for those which the caller lets see all tokens and be seen by all, in attention that is local
    otherwise; None where the caller says nothing of them."""
    lengths: tuple[int, ...] | None = None
    """Of the texts that stand one after another in a single row, where padding is left out; None elsewhere."""
    shared: dict[Any, Any] | None = None
    """What the layers of one forward share, made by the first that needs it, such as a mask in the kernel's form."""
    windows: Any = None
    """How a layer cuts the grid into windows (`zoo.kernel.Windows`), for the attention of that layer; None elsewhere."""

    position: Any = None
    """The position that all attention of a stack shares, where the stack has one; of the stack's layers only."""
    memory: Memory | None = None
    """What cross-attention looks at; None where there is no other sequence."""

    def places(self, tokens: int, device: Any) -> Tensor:
        """The place of each token in its text: (batch or 1, tokens), whole numbers."""
        if self.positions is not None:
            return self.positions
        return torch.arange(self.past, self.past + tokens, device=device)[None]

    def allowed(self) -> Tensor | None:
        """`mask`, and of it only what tokens of one text may attend to where a row holds several; made once per forward."""
        if self.texts is None:
            return self.mask
        known = None if self.shared is None else self.shared.get("allowed")
        if known is None:
            same = (self.texts[:, :, None] == self.texts[:, None, :])[:, None]
            known = same if self.mask is None else self.mask & same
            if self.shared is not None:
                self.shared["allowed"] = known
        return known

    def across(self, memory: Memory) -> Layout:
        """The layout of attention to another sequence: what is masked is that sequence, whose tokens have places of its own."""
        return self._replace(
            mask=memory.mask, cache=None, texts=None, lengths=None, real=None, global_tokens=None, position=None, memory=None
        )
