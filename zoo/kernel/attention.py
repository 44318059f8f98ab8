"""Scaled dot-product attention.

Forward in float32 it is torch's own operator: as plain products it was not faster (2 x 12 heads of 197 tokens and
64 features on a 2-core AVX-512 server: both 1.4 ms). In bfloat16 there is a faster one for tiles
(`zoo.kernel.attention_tiles`), and torch's backward pass is slower than plain products that compute the weights anew (5.2
against 3.7 ms), so `Attention` does those where the matrix of scores is small enough to be worth forming. In float32, with
the weights kept, a training step was up to 9 % slower.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernel import attention_tiles
from zoo.kernel.switch import fast, product_dtype, readable

SCORES = 2**25  # elements of (batch, heads, tokens, tokens) up to which the backward pass forms them: 64 MB


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    dropout: float = 0.0,
    shared: dict[Any, Any] | None = None,
) -> Tensor:
    """(batch, heads, tokens, head_size) x 2 of (batch, key heads, key tokens, head_size) -> as query.

    mask: (..., tokens, key tokens), boolean with True = attend, or a float to be added to the scores. causal:
    token i attends to the keys up to its own, where the last token belongs to the last key. Fewer key heads than
    query heads are shared by groups of query heads. A token that may attend to nothing gets zeros, and passes
    no gradient back. dropout: of the weights; the caller passes 0 outside training. shared: what the layers of one
    forward pass share: the mask is brought into the kernel's form by the first that needs it.
    """
    grouped = query.shape[1] != key.shape[1]
    tokens, keys = query.shape[-2], key.shape[-2]
    if grouped and tokens == 1 and query.shape[1] % key.shape[1] == 0 and (mask is None or mask.shape[-3:-1] == (1, 1)):
        # A single token: the queries of a group are as many tokens of one head, so that its keys are read once
        # (8 texts, 32 heads on 8, 256 keys: 0.29 ms instead of 0.62).
        together = query.reshape(query.shape[0], key.shape[1], -1, query.shape[-1])
        y = attention(together, key, value, mask=mask, scale=scale, dropout=dropout, shared=shared)
        return y.reshape(*query.shape[:-1], value.shape[-1])
    square = tokens == keys
    if mask is None and (not causal or square):
        if not grouped and dropout == 0 and not torch.compiler.is_compiling() and query.numel():
            size = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
            if _fast_backward(query, key, value):
                # Conversions stay outside, where autograd sees them.
                inputs = [t.to(torch.bfloat16) for t in (query, key, value)]
                with torch.autocast("cpu", enabled=False):
                    return Attention.apply((causal, size), *inputs)
            mixed = attention_tiles.attention(query, key, value, causal, size)
            if mixed is not None:
                return mixed
        return F.scaled_dot_product_attention(
            query, key, value, is_causal=causal, scale=scale, dropout_p=dropout, enable_gqa=grouped
        )
    name, counts = ("mask", causal, query.dtype), (tokens, keys)  # sizes may be symbols, which are no keys of a mapping
    known = None if shared is None else shared.get(name)
    if known is None or known[0] is not mask or known[1] != counts:  # a layer may have a mask of its own
        known = (mask, counts, *_ready(mask, causal, tokens, keys, query))
        if shared is not None:
            shared[name] = known
    scores, empty = known[2:]
    y = F.scaled_dot_product_attention(query, key, value, attn_mask=scores, scale=scale, dropout_p=dropout, enable_gqa=grouped)
    return y if empty is None else y.masked_fill(empty, 0.0)


def _causal(mask: Tensor | None, tokens: int, keys: int, device: torch.device) -> Tensor:
    """The mask, and of it only what causal attention allows: query i belongs to key i + keys - tokens."""
    allowed = torch.ones(tokens, keys, dtype=torch.bool, device=device).tril(keys - tokens)
    if mask is None:
        return allowed
    return mask & allowed if mask.dtype == torch.bool else mask.masked_fill(~allowed, -math.inf)


def attention_by_text(
    query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], causal: bool, scale: float | None, dropout: float
) -> Tensor:
    """`attention` of texts that stand one after another in a single row, each on its own.

    Shapes: (1, heads, sum of lengths, head_size), as in `attention`. Neighbouring texts of equal length are one call.
    """
    pieces, start = [], 0
    for length, equal in groupby(lengths):
        number = len(list(equal))
        end = start + number * length
        parts = (each[0, :, start:end].unflatten(1, (number, length)).transpose(0, 1) for each in (query, key, value))
        mixed = attention(*parts, causal=causal, scale=scale, dropout=dropout)
        pieces.append(mixed.transpose(0, 1).flatten(1, 2))
        start = end
    return torch.cat(pieces, dim=1)[None]


def _ready(mask: Tensor | None, causal: bool, tokens: int, keys: int, query: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The mask as the kernel takes it, and which rows are without any key.

    Such a row is computed with all of them and its result replaced, so that there is no NaN on either way.
    """
    if causal and not (tokens == 1 and keys > 0):
        mask = _causal(mask, tokens, keys, query.device)
    if mask is None:
        return None, None
    if mask.dtype != torch.bool:
        mask = mask.to(query.dtype)  # what is finite in a larger type may be minus infinity in this one
    closed = ~mask if mask.dtype == torch.bool else mask == -math.inf
    empty: Tensor | None = closed.all(-1, keepdim=True)
    here = readable(query) and readable(mask)
    if here and empty is not None and not bool(empty.any()):
        empty = None
    if mask.dtype == torch.bool:
        mask = mask if empty is None else mask | empty
        if here:  # torch would turn it into scores in every layer
            mask = torch.zeros(mask.shape, dtype=query.dtype).masked_fill_(~mask, -math.inf)
        return mask, empty
    return mask if empty is None else mask.masked_fill(empty, 0.0), empty


def _fast_backward(query: Tensor, key: Tensor, value: Tensor) -> bool:
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return False
    needed = query.requires_grad or key.requires_grad or value.requires_grad
    if not needed or query.shape != key.shape or query.shape != value.shape or not query.numel() or not fast():
        return False
    batch, heads, tokens, _ = query.shape
    return batch * heads * tokens**2 <= SCORES and product_dtype(query, key, value) == torch.bfloat16


def _composed(setting: tuple[bool, float], query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):  # the one whose backward pass can be differentiated
        return F.scaled_dot_product_attention(query, key, value, is_causal=setting[0], scale=setting[1])


class Attention(torch.autograd.Function):
    """Attention of equal numbers of heads without a mask; the backward pass is five plain products."""

    @staticmethod
    def forward(ctx: Any, setting: tuple[bool, float], query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        causal, scale = ctx.setting = setting
        output = attention_tiles.attention(query, key, value, causal, scale)
        if output is None:
            flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
            output, _ = flash(query, key, value, 0.0, causal, scale=scale)
        ctx.save_for_backward(query, key, value)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        causal, scale = ctx.setting
        with torch.autocast("cpu", enabled=False):
            if torch.is_grad_enabled() or not fast():
                return (None, *differentiate(ctx, _composed, gradient, ctx.setting, query, key, value))
            batch, heads, tokens, size = query.shape
            q, k, v, g = (t.reshape(batch * heads, -1, size) for t in (query, key, value, gradient))
            weights = (q * scale).bmm(k.mT)
            if causal:
                weights.masked_fill_(~_causal(None, tokens, tokens, q.device), -math.inf)
            torch.softmax(weights, -1, out=weights)
            scores = torch._softmax_backward_data(g.bmm(v.mT), weights, -1, weights.dtype)
            d_value = weights.mT.bmm(g)
            d_query, d_key = scores.bmm(k).mul_(scale), scores.mT.bmm(q).mul_(scale)
            return None, *(t.view(batch, heads, -1, size) for t in (d_query, d_key, d_value))


def differentiate(ctx: Any, function: Any, gradient: Tensor, setting: Any, *inputs: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients of `function(setting, *inputs)` by autograd: where the backward pass is itself differentiated
    (create_graph=True), or transformed or watched."""
    differentiable = torch.is_grad_enabled()
    needed = ctx.needs_input_grad[1:]
    with torch.enable_grad():
        if not differentiable:
            inputs = tuple(t.detach().requires_grad_(n) for t, n in zip(inputs, needed, strict=True))
        output = function(setting, *inputs)
        wanted = [t for t, n in zip(inputs, needed, strict=True) if n]
        found = iter(torch.autograd.grad(output, wanted, gradient, create_graph=differentiable))
    return tuple(next(found) if n else None for n in needed)
