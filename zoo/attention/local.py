"""Attention of every token to its neighbours."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from zoo import kernel
from zoo.attention.base import Attention, AttentionConfig
from zoo.config import Problem
from zoo.errors import InputError
from zoo.kernel.local_band import picked, taken
from zoo.kernel.weights import attention_weights, mixed
from zoo.layout import Layout, Memory
from zoo.registry import part


class GlobalRows(NamedTuple):
    """The global tokens of a batch, and by what they attend."""

    tokens: kernel.GlobalTokens | None
    """Which they are, for the kernel; None where nobody can say how many."""
    which: Tensor
    """(batch or 1, tokens), true for these."""
    query: Tensor | None
    key: Tensor | None
    value: Tensor | None
    """Their own queries (batch, heads, global tokens or tokens, head_size), and the keys and values of all tokens for them;
    None where they are those of the other tokens."""


class LocalAttention(Attention):
    """Every token attends to itself and its neighbours (or, if causal, to those before it), and to global tokens.

    Multi-head, grouped-query and multi-query attention by `kv_heads`. Papers: Child et al. 2019,
    https://arxiv.org/abs/1904.10509; Beltagy et al. 2020 (Longformer), https://arxiv.org/abs/2004.05150, sections 3.1 and 3.2
    (global tokens and their projections).
    Shapes: (batch, tokens, width) -> (batch, tokens, width). Cost: O(tokens x window x width) time and memory
    O(tokens x width); global tokens add O(tokens x global tokens x width). Only who asks for the attention weights has them
    formed for all pairs of tokens; and a graph that is traced with a `global_attention_mask`, whose tokens it cannot count,
    holds a mask of them.
    """

    class Config(AttentionConfig):
        """Config of `local` attention."""

        type: Literal["local"] = "local"
        window: Annotated[int, Field(ge=0)]
        """How many neighbours a token sees before it and, unless causal, behind it; itself not counted."""
        global_tokens: Annotated[int, Field(ge=0)] = 0
        """How many first tokens of a text (or of an image: class and register tokens) see all tokens and are seen by all,
        unless a call says by `global_attention_mask` which tokens do."""
        global_projections: bool = False
        """Whether global tokens see others by query, key and value projections of their own (Longformer)."""
        padding: Literal["compute", "zero"] = "compute"
        """What tokens of padding get: what they find, as all others do, or zeros (Longformer)."""

        def problems(self, *, width: int, **context: Any) -> Iterator[Problem]:
            yield from super().problems(width=width, **context)
            if self.position is None:
                return
            if self.global_projections:
                yield ("global_projections",), "they know no positions that act inside of attention; leave `position` out"
            if self.global_tokens and part("position", getattr(self.position, "type")).relative:
                yield ("global_tokens",), f"{getattr(self.position, 'type')!r} positions do not reach beyond the window; use 0"
            if getattr(self.position, "count", "all") != "all":
                yield ("position", "count"), "local attention numbers all tokens of a row; use all"

    sharding: ClassVar[dict[str, str]] = {
        **Attention.sharding,
        "global_query": "column",
        "global_key": "column",
        "global_value": "column",
    }
    twins: ClassVar[dict[str, str]] = {"global_query": "query", "global_key": "key", "global_value": "value"}
    """As which layers others start where weights come from a model without them, as in section 3.1 of Longformer's paper."""
    has_global_tokens: ClassVar[bool] = True
    """Whether a call's `global_attention_mask` means something to it."""

    def __init__(self, config: Config, *, width: int) -> None:
        super().__init__(config, width=width)
        self.window, self.global_tokens = config.window, config.global_tokens
        self.zeroes_padding = config.padding == "zero"
        inner, kv_inner = self.query.out_features, self.key.out_features
        own = config.global_projections
        self.global_query = kernel.Linear(width, inner, config.bias) if own else None
        self.global_key = kernel.Linear(width, kv_inner, config.bias) if own else None
        self.global_value = kernel.Linear(width, kv_inner, config.bias) if own else None

    def forward(
        self, x: Tensor, layout: Layout, *, memory: Memory | None = None, weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        if memory is not None:
            raise InputError("local attention: the tokens of another sequence are no neighbours; use 'full'")
        return super().forward(x, layout._replace(global_tokens=self._rows(x, layout)), weights=weights)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, layout: Layout, weights: bool) -> tuple[Tensor, Tensor | None]:
        if layout.mask is not None and layout.mask.shape[1] not in (1, query.shape[1]):
            raise InputError(f"attention_mask: for {layout.mask.shape[1]} heads, but there are {query.shape[1]}")
        rows: GlobalRows | None = layout.global_tokens
        mask, texts = layout.mask, layout.texts
        position = self.position_in(layout)
        relative = position is not None and position.relative
        if relative and rows is not None:
            raise InputError("global_attention_mask: relative positions do not reach beyond the window")
        if layout.cache is not None:
            if rows is not None:
                raise InputError("use_cache: what is kept is a window of tokens, without the global ones in front of it")
            key, value = layout.cache.extend(key, value, keep=self.window)
            mask = None if mask is None else mask[..., mask.shape[-1] - key.shape[2] :]
        dropout = self.dropout if self.training else 0.0
        if weights or self.pattern.watched or (rows is not None and rows.tokens is None):
            found, seen = self._dense(query, key, value, (mask, texts), rows, position, dropout, weights)
        else:
            found, seen = kernel.local_attention(
                query, key, value, window=self.window, causal=self.causal, mask=mask, texts=texts,
                bias=position.bias if relative else None, global_tokens=None if rows is None else rows.tokens,
                scale=self.scale, dropout=dropout,
            ), None  # fmt: skip
            if rows is not None:
                found = self._with_rows(found, query, key, value, (mask, texts), rows, dropout)
        if self.zeroes_padding and layout.real is not None:
            padding = ~layout.real[:, None, :, None]
            found, seen = found.masked_fill(padding, 0.0), None if seen is None else seen.masked_fill(padding, 0.0)
        return found, seen

    def _rows(self, x: Tensor, layout: Layout) -> GlobalRows | None:
        """The global tokens, if there are any."""
        tokens = x.shape[1]
        chosen: kernel.GlobalTokens | None
        if layout.global_tokens is not None:
            which, chosen = layout.global_tokens, self._counted(layout)
            if chosen is not None and not chosen.at.shape[1]:
                return None
        elif not self.global_tokens:
            return None
        elif layout.texts is not None:
            raise InputError("sequence_ids: say by global_attention_mask which tokens of the packed texts are global")
        else:
            chosen = kernel.first_tokens(min(self.global_tokens, tokens), tokens, x.device)
            which = chosen.which
        if self.global_query is None or self.global_key is None or self.global_value is None:
            return GlobalRows(chosen, which, None, None, None)
        own = x if chosen is None else picked(x[:, None], chosen.at)[:, 0]
        key, value = kernel.project(x, self.global_key, self.global_value)
        query, key, value = (self._split(each) for each in (self.global_query(own), key, value))
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        return GlobalRows(chosen, which, query, key, value)

    def _counted(self, layout: Layout) -> kernel.GlobalTokens | None:
        """Where the tokens of a call's `global_attention_mask` stand, found once for all layers."""
        shared = layout.shared if layout.shared is not None else {}
        if "global tokens" not in shared:
            shared["global tokens"] = kernel.chosen_tokens(layout.global_tokens)
        return shared["global tokens"]

    def _with_rows(
        self, found: Tensor, query: Tensor, key: Tensor, value: Tensor, allowed: Any, rows: GlobalRows, dropout: float
    ) -> Tensor:
        """What the tokens found, that of global tokens replaced by what they find among all tokens."""
        assert rows.tokens is not None
        at = rows.tokens.at
        if rows.key is None or rows.value is None or rows.query is None:
            query = picked(query, at)
        else:
            query, key, value = rows.query, rows.key, rows.value
        mask = self._of_rows(allowed, at, key.shape[2])
        seen = kernel.attention(query, key, value, mask=mask, scale=self.scale, dropout=dropout)
        number = (rows.which.cumsum(1) - 1).clamp(0)  # of each global token among its kind
        return torch.where(rows.which[:, None, :, None], picked(seen, number), found)

    def _of_rows(self, allowed: tuple[Tensor | None, Tensor | None], at: Tensor, keys: int) -> Tensor | None:
        """What the tokens at (batch or 1, number) may attend to, of all tokens."""
        mask, texts = allowed
        if mask is not None and mask.shape[2] > 1:
            mask = picked(mask.expand(max(len(mask), len(at)), -1, -1, -1), at)
        closed = None if texts is None else taken(texts, at)[:, :, None] != texts[:, None, :]
        if self.causal:
            behind = torch.arange(keys, device=at.device) > at[:, :, None]
            closed = behind if closed is None else closed | behind
        if closed is None:
            return mask
        if mask is None or mask.dtype == torch.bool:
            return ~closed[:, None] if mask is None else mask & ~closed[:, None]
        return mask.masked_fill(closed[:, None], -math.inf)

    def _dense(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        allowed: Any,
        rows: GlobalRows | None,
        position: Any,
        dropout: float,
        weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """The same by weights of all pairs of tokens, for those who look at them, or where nobody can count global tokens."""
        options: dict[str, Any] = {"mask": self._all_pairs(query, key.shape[2], allowed, rows, position), "scale": self.scale}
        watched = weights or self.pattern.watched
        pattern = attention_weights(query, key, **options) if watched else None
        own = None
        if rows is not None and rows.query is not None and rows.key is not None and rows.value is not None:
            own, own_key, own_value = rows.query, rows.key, rows.value
            if rows.tokens is not None:  # spread over all tokens, as the weights are
                number = (rows.which.cumsum(1) - 1).clamp(0)
                own = picked(own, number)
            is_global = rows.which[:, None, :, None]
            if pattern is not None:
                pattern = torch.where(is_global, attention_weights(own, own_key, **options), pattern)
        if pattern is None:
            found = kernel.attention(query, key, value, dropout=dropout, **options)
            if own is not None:
                found = torch.where(is_global, kernel.attention(own, own_key, own_value, dropout=dropout, **options), found)
            return found, None
        pattern = self.pattern(pattern)
        found = mixed(pattern, value, dropout)
        if own is not None:
            found = torch.where(is_global, mixed(pattern, own_value, dropout), found)
        return found, pattern if weights else None

    def _all_pairs(self, query: Tensor, keys: int, allowed: Any, rows: GlobalRows | None, position: Any) -> Tensor:
        """Which token may attend to which, or what is added to the scores."""
        mask, texts = allowed
        key_at = torch.arange(keys, device=query.device)
        query_at = key_at[keys - query.shape[2] :]
        apart = key_at - query_at[:, None]
        near = (apart.abs() <= self.window)[None, None]
        if rows is not None:
            near = near | rows.which[:, None, None, :] | rows.which[:, None, :, None]
        if self.causal:
            near = near & (apart <= 0)
        if texts is not None:
            near = near & (texts[:, None, :, None] == texts[:, None, None, :])
        if mask is not None:
            near = near & mask if mask.dtype == torch.bool else mask.masked_fill(~near, -math.inf)
        if position is None or not position.relative:
            return near
        bias = position.bias(query_at[None], key_at[None]).to(query.dtype)
        return bias.masked_fill(~near, -math.inf) if near.dtype == torch.bool else bias + near
