"""What `generate` returns where it is asked for more than the tokens."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor


class GenerateOutput(NamedTuple):
    """The texts, and what was asked for beside them; the rest is None."""

    sequences: Tensor
    """(texts, tokens): the prompts with what was generated; texts that ended earlier are filled up."""
    sequences_scores: Tensor | None = None
    """(texts,), of beams: the log-probability of what was generated, divided by its length to `length_penalty`."""
    scores: tuple[Tensor, ...] | None = None
    """For each new token the scores it was chosen by, (rows, vocabulary), float32; rows are texts, or all beams."""
    logits: tuple[Tensor, ...] | None = None
    """The same as the model gave them."""
    past_key_values: Any = None
    """The cache, which holds all tokens but the last; None for beams."""
