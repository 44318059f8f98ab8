"""Attention to a window of neighbours, in time and memory that grow as tokens x window.

Queries are taken in blocks; a block and the keys that its windows reach are one small attention, which fits in the
processor's cache. Of the ways to do it, measured in float32 on a 2-core AVX-512 server with 8 heads of 64 features, 4096
tokens and 128 neighbours on each side:

- forward: a loop over blocks of 64 queries, each one call of torch's operator on views of the keys, 16 ms. All blocks in
  one call, over an unfolded view of padded keys, 18 ms; attention to all tokens, with a mask, 246 ms.
- backward: the same loop with five plain products for each block, which compute its weights anew, 42 ms. The operator's
  own backward pass in such a loop 57 ms; of the unfolded view, whose gradients have to be summed up, 85 ms.
- blocks of 96 queries instead: both passes together 68 instead of 72 ms, forward no difference.

So that is done on a CPU. Under torch.compile, torch.export and functorch, with dropout, and on other devices all blocks
are one call: the dozen lines of `_unfolded`. Nothing was measured on a GPU, where torch's own kernels for windows may be
faster. A window that reaches all keys is `attention`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernel.attention import attention, differentiate
from zoo.kernel.local_band import BLOCK, Band, Bias, GlobalTokens, View, opened, picked, taken
from zoo.kernel.switch import fast, product_dtype

SCORES = 2**19  # elements of (heads, queries, keys) that the backward pass forms at once: 2 MB


def local_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    window: int,
    causal: bool = False,
    mask: Tensor | None = None,
    texts: Tensor | None = None,
    bias: Bias | None = None,
    global_tokens: GlobalTokens | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """(batch, heads, tokens, head_size) x 2 of (batch, key heads, key tokens, head_size) -> as query.

    A token attends to itself, to `window` tokens before it and, unless `causal`, to `window` tokens behind it; where there
    are more keys than queries, the last token belongs to the last key. Fewer key heads than query heads are shared by groups
    of query heads. A token that may attend to nothing gets zeros, and passes no gradient back.

    Args:
        mask: (batch or 1, heads or 1, tokens or 1, key tokens), true = attend, or a float to be added to the scores.
        texts: (batch or 1, tokens), of which text each token is; none attends to another text.
        bias: what is added to the scaled scores. It may depend on how far apart two places are, and on nothing else.
        global_tokens: to which every token attends beside its window, if causal those behind them. There are as many queries
            as keys then. What the global tokens themselves attend to is not changed.
        scale: of the scores (default: 1 / sqrt(head_size)).
        dropout: of the weights; the caller passes 0 outside training.
    """
    tokens, keys = query.shape[-2], key.shape[-2]
    size = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    if not torch.compiler.is_exporting():  # to which these numbers may be unknown
        window = max(min(window, keys - 1), 0)
        if window >= keys - 1:
            whole = _whole(query, keys, mask, texts, bias)
            return attention(query, key, value, mask=whole, causal=causal, scale=size, dropout=dropout)
        if tokens == 1 and texts is None and bias is None and global_tokens is None and causal:  # as in decoding
            key, value = key[:, :, -window - 1 :], value[:, :, -window - 1 :]
            mask = None if mask is None else mask[..., -window - 1 :]
            return attention(query, key, value, mask=mask, scale=size, dropout=dropout)
    band = Band(window, 0 if causal else window, tokens, keys, causal, size, mask, texts, global_tokens)
    if global_tokens is not None:
        key, value = (torch.cat([picked(each, global_tokens.at), each], 2) for each in (key, value))
    template = band.template(query, bias)
    if dropout > 0 or not _by_blocks(query, key, value, mask):
        return _unfolded(band, query, key, value, template, dropout)
    kind = product_dtype(query, key, value) or query.dtype
    inputs = [each.to(kind) for each in (query, key, value, template)]  # outside, where autograd sees it
    with torch.autocast("cpu", enabled=False):
        return LocalAttention.apply(band, *inputs)


def _by_blocks(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> bool:
    """Whether the loop over blocks is taken, which keeps nothing but its inputs for the backward pass."""
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    if mask is not None and mask.requires_grad:
        return False
    if query.is_meta:  # where only sizes count, which are to be those of a real run
        return True
    exact = query.device.type == "cpu" and {each.dtype for each in (query, key, value)} == {torch.float64}
    return fast() and (exact or product_dtype(query, key, value) is not None)


def _whole(query: Tensor, keys: int, mask: Tensor | None, texts: Tensor | None, bias: Bias | None) -> Tensor | None:
    """What `attention` takes as its mask, where the window reaches all keys."""
    if texts is not None:
        same = texts[:, None, :, None] == texts[:, None, None, :]
        if mask is None or mask.dtype == torch.bool:
            mask = same if mask is None else mask & same
        else:
            mask = mask.masked_fill(~same, -math.inf)
    if bias is None:
        return mask
    key_at = torch.arange(keys, device=query.device)[None]
    scores = bias(key_at[:, keys - query.shape[2] :], key_at).to(query.dtype)
    if mask is None:
        return scores
    return scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask.to(query.dtype)


def _unfolded(band: Band, query: Tensor, key: Tensor, value: Tensor, template: Tensor, dropout: float) -> Tensor:
    """All blocks as one call, over views of padded keys."""
    batch, heads, tokens, _ = query.shape
    count, wide = (tokens + BLOCK - 1) // BLOCK, band.before + BLOCK + band.after
    spare = count * BLOCK - tokens
    sides = (band.before - (band.keys - tokens), spare + band.after)

    def queries(x: Tensor) -> Tensor:
        return F.pad(x, (0, spare)).unflatten(-1, (count, BLOCK))

    def keys(x: Tensor) -> Tensor:
        return F.pad(x, sides).unfold(-1, wide, BLOCK)

    def pairs(x: Tensor) -> Tensor:
        rows = F.pad(keys(x), (0, 0, 0, 0, 0, spare)).unflatten(-3, (count, BLOCK))
        return rows.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)

    def around(x: Tensor) -> Tensor:
        x = x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], 1)
        blocks = F.pad(x[:, :, band.first :], (0, 0, *sides)).unfold(2, wide, BLOCK).mT
        if band.chosen is not None:
            blocks = torch.cat([x[:, :, None, : band.first].expand(-1, -1, count, -1, -1), blocks], 3)
        return blocks.flatten(0, 1)

    inside = keys(torch.ones(band.keys, dtype=torch.bool, device=query.device))
    piece = template.unsqueeze(2).masked_fill(~inside.unsqueeze(-2), -math.inf)
    piece = band.limited(piece, View(queries, keys, pairs))
    if band.chosen is not None:
        at = band.chosen.at
        some = View(queries, lambda x: taken(x, at).unsqueeze(-2), lambda x: queries(taken(x, at).mT).movedim(-3, -1))
        piece = band.joined(some, piece)
    piece, empty = opened(piece)
    if piece.shape[0] * piece.shape[1] > 1:
        piece = piece.expand(batch, heads, -1, -1, -1)
    mixed = F.scaled_dot_product_attention(
        F.pad(query, (0, 0, 0, spare)).unflatten(2, (count, BLOCK)).flatten(0, 1), around(key), around(value),
        attn_mask=piece.flatten(0, 1), dropout_p=dropout, scale=band.scale,
    ).unflatten(0, (batch, heads))  # fmt: skip
    if empty is not None:
        mixed = mixed.masked_fill(empty, 0.0)
    return mixed.flatten(2, 3)[:, :, :tokens]


def _composed(band: Band, query: Tensor, key: Tensor, value: Tensor, template: Tensor) -> Tensor:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):  # the one whose backward pass can be differentiated
        return _unfolded(band, query, key, value, template, 0.0)


class LocalAttention(torch.autograd.Function):
    """The loop over blocks."""

    @staticmethod
    def forward(ctx: Any, band: Band, query: Tensor, key: Tensor, value: Tensor, template: Tensor) -> Tensor:
        ctx.band = band
        ctx.save_for_backward(query, key, value, template)
        if query.is_meta:
            return _unfolded(band, query, key, value, template, 0.0)
        batch, heads, tokens, _ = query.shape
        # a token's heads lie together, as linear layers have them
        mixed = query.new_empty(batch, tokens, heads, value.shape[-1]).transpose(1, 2)
        grouped = heads != key.shape[1]
        for queries, keys, columns in band.blocks():
            piece, empty = band.scores(template, queries, keys, columns)
            block = F.scaled_dot_product_attention(
                query[:, :, queries], _reached(key, band, keys), _reached(value, band, keys),
                attn_mask=piece, scale=band.scale, enable_gqa=grouped,
            )  # fmt: skip
            mixed[:, :, queries] = block if empty is None else block.masked_fill(empty, 0.0)
        return mixed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, template = ctx.saved_tensors
        with torch.autocast("cpu", enabled=False):
            batched = torch._C._functorch.is_legacy_batchedtensor(gradient)  # which knows no `out`
            if torch.is_grad_enabled() or batched or not fast() or query.is_meta:
                return (None, *differentiate(ctx, _composed, gradient, ctx.band, query, key, value, template))
            return (None, *_gradients(ctx.band, query, key, value, template, gradient, ctx.needs_input_grad[4]))


def _gradients(
    band: Band, query: Tensor, key: Tensor, value: Tensor, template: Tensor, gradient: Tensor, of_template: bool
) -> tuple[Tensor | None, ...]:
    """Those of query, key, value and template. Blocks share keys, whose gradients are sums over blocks."""
    sums = torch.float32 if query.dtype == torch.bfloat16 else query.dtype
    d_query, d_key, d_value = torch.empty_like(query), torch.zeros_like(key, dtype=sums), torch.zeros_like(value, dtype=sums)
    d_template = torch.zeros_like(template, dtype=sums) if of_template else None
    heads, groups, scratch = key.shape[1], query.shape[1] // key.shape[1], _Scratch(query)
    for queries, keys, columns in band.blocks():
        piece, empty = band.scores(template, queries, keys, columns)
        length, reach = piece.shape[-2:]
        for rows, some in _shares(query.shape[0], heads, groups * length * reach):
            own = slice(some.start * groups, some.stop * groups)
            q, g, to = (x[rows, own, queries] for x in (query, gradient, d_query))
            if empty is not None:
                g = g.masked_fill(_share(empty, rows, own), 0.0)
            g = g.contiguous() if 0 in g.stride() else g  # as that of a sum is
            q, g = (x.reshape(-1, groups * length, x.shape[-1]) for x in (q, g))
            k, v = (_reached(x[rows, some], band, keys).flatten(0, 1) for x in (key, value))
            weights = torch.bmm(q, k.mT, out=scratch("weights", len(q), groups * length, reach))
            whole = weights.view(*to.shape[:3], reach)
            torch.add(_share(piece, rows, own), whole, alpha=band.scale, out=whole)
            torch.softmax(weights, -1, out=weights)
            part = torch.bmm(weights.mT, g, out=scratch("part", len(q), reach, v.shape[-1]))
            _add(d_value[rows, some], part, band, keys)
            scores = torch.bmm(g, v.mT, out=scratch("scores", *weights.shape))
            torch._softmax_backward_data(scores, weights, -1, scores.dtype, grad_input=scores)
            if d_template is not None:
                found = scores.view(whole.shape)[..., band.first :].sum(0, keepdim=True)
                shared = template.shape[1] == 1
                d_template[:, slice(None) if shared else own, :length, columns] += found.sum(1, True) if shared else found
            part = torch.bmm(scores, k, out=scratch("queries", *q.shape))
            torch.mul(part.view(to.shape), band.scale, out=to)
            part = torch.bmm(scores.mT, q, out=scratch("part", len(q), reach, q.shape[-1]))
            _add(d_key[rows, some], part, band, keys, band.scale)
    d_template = None if d_template is None else d_template.to(template.dtype)
    return d_query, d_key.to(key.dtype), d_value.to(value.dtype), d_template


def _reached(x: Tensor, band: Band, keys: slice) -> Tensor:
    """The keys or values of a block, the global ones in front."""
    own = x[:, :, keys.start + band.first : keys.stop + band.first]
    return own if band.chosen is None else torch.cat([x[:, :, : band.first], own], 2)


def _add(to: Tensor, part: Tensor, band: Band, keys: slice, scale: float = 1.0) -> None:
    """The reverse: adds the gradients of a block's keys to those of all."""
    part = part.view(*to.shape[:2], *part.shape[1:])
    to[:, :, keys.start + band.first : keys.stop + band.first].add_(part[:, :, band.first :], alpha=scale)
    if band.chosen is not None:
        to[:, :, : band.first].add_(part[:, :, : band.first], alpha=scale)


def _shares(batch: int, heads: int, scores: int) -> Iterator[tuple[slice, slice]]:
    """Slices of the rows and of the key heads, such that each share has about SCORES scores."""
    fit = max(SCORES // scores, 1)
    rows, some = (max(fit // heads, 1), heads) if fit >= heads else (1, fit)
    for row in range(0, batch, rows):
        for head in range(0, heads, some):
            yield slice(row, row + rows), slice(head, min(head + some, heads))


def _share(x: Tensor, rows: slice, heads: slice) -> Tensor:
    """That of (batch or 1, key heads or 1, ...)."""
    x = x[rows] if x.shape[0] > 1 else x
    return x[:, heads] if x.shape[1] > 1 else x


class _Scratch:
    """Memory that the blocks use one after another."""

    def __init__(self, like: Tensor) -> None:
        self.like = like
        self.held: dict[str, Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        number = math.prod(shape)
        if name not in self.held or self.held[name].numel() < number:
            self.held[name] = self.like.new_empty(number)
        return self.held[name][:number].view(shape)
