"""The weights of attention, for those who look at them."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def attention_weights(
    query: Tensor,
    key: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """The weights with which `attention` mixes the values, before dropout.

    Shapes and arguments are those of `attention`: (batch, heads, tokens, head_size) and (batch, key heads, key
    tokens, head_size) -> (batch, heads, tokens, key tokens). A token that may attend to nothing gets zeros.
    This forms all weights at once, which `attention` avoids.
    """
    tokens, keys = query.shape[-2], key.shape[-2]
    key = _shared(key, query.shape[1])
    scores = query * (scale if scale is not None else 1 / math.sqrt(query.shape[-1])) @ key.mT
    if mask is None and not causal:
        return scores.softmax(-1)  # nobody can be without a key, which saves copies of all weights
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask.to(scores.dtype)
    if causal:
        allowed = torch.ones(tokens, keys, dtype=torch.bool, device=query.device).tril(keys - tokens)
        scores = scores.masked_fill(~allowed, -math.inf)
    empty = (scores == -math.inf).all(-1, keepdim=True)
    return scores.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)


def mixed(weights: Tensor, value: Tensor, dropout: float = 0.0) -> Tensor:
    """The values mixed by explicit weights: what `attention` computes without forming them.

    (batch, heads, tokens, key tokens) and (batch, key heads, key tokens, head_size) -> (batch, heads, tokens, head_size).
    """
    if dropout > 0.0:
        weights = functional.dropout(weights, dropout)
    return weights @ _shared(value, weights.shape[1])


def _shared(x: Tensor, heads: int) -> Tensor:
    """Keys or values, each head repeated for the query heads that share it."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)
