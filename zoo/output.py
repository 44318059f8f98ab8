"""What models return: typed named tuples with Hugging Face's names."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor


class TransformerOutput(NamedTuple):
    """The output of a transformer; what its head does not give, or nobody asked for, is None."""

    last_hidden_state: Tensor | None = None
    """(batch, tokens, width): the last block's tokens, after the final norm."""
    pooler_output: Tensor | None = None
    """(batch, size): what a pooler head gives."""
    logits: Tensor | None = None
    """(batch, classes) of a classifier, (batch, tokens, vocabulary or classes) of a head that scores tokens."""
    prediction_logits: Tensor | None = None
    """(batch, tokens, vocabulary): the scores of a pretraining head for masked tokens."""
    seq_relationship_logits: Tensor | None = None
    """(batch, 2): its scores for whether the second text follows the first (class 0) or not."""
    start_logits: Tensor | None = None
    """(batch, tokens): a span head's scores for where an answer begins."""
    end_logits: Tensor | None = None
    """(batch, tokens): and for where it ends."""
    sentence_embedding: Tensor | None = None
    """(batch, width): what a sentence-embedding head gives."""
    past_key_values: Any = None
    """The keys and values of all tokens so far (`zoo.cache.Cache`), for the next call."""
    hidden_states: tuple[Tensor, ...] | None = None
    """The tokens before the first and after each block, before the final norm; (batch, tokens, width) each."""
    attentions: tuple[Tensor, ...] | None = None
    """The attention weights of the layers; (batch, heads, tokens, tokens) each."""
