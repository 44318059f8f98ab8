"""The weights of attention, for those who look at them."""

from __future__ import annotations

import math

import torch
from torch import Tensor


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
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = query @ key.mT * (scale if scale is not None else 1 / math.sqrt(query.shape[-1]))
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    if causal:
        allowed = torch.ones(tokens, keys, dtype=torch.bool, device=query.device).tril(keys - tokens)
        scores = scores.masked_fill(~allowed, -math.inf)
    empty = (scores == -math.inf).all(-1, keepdim=True)
    return scores.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)
