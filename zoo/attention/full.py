"""Attention of every token to every token."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

from torch import Tensor

from zoo import kernel
from zoo.attention.base import Attention, AttentionConfig
from zoo.errors import InputError
from zoo.kernel.weights import attention_weights, mixed
from zoo.layout import Layout


class FullAttention(Attention):
    """Every token attends to every token (or, if causal, to itself and those before it).

    Multi-head, grouped-query and multi-query attention by `kv_heads`. Papers: Vaswani et al. 2017,
    https://arxiv.org/abs/1706.03762; Ainslie et al. 2023, https://arxiv.org/abs/2305.13245.
    Shapes: (batch, tokens, width) -> (batch, tokens, width). Cost: O(tokens^2 x width) time; the
    fused kernel keeps memory at O(tokens x width).
    """

    class Config(AttentionConfig):
        """Config of `full` attention."""

        type: Literal["full"] = "full"

    skips_padding: ClassVar[bool] = True
    across: ClassVar[bool] = True

    def attend(self, query: Tensor, key: Tensor, value: Tensor, layout: Layout, weights: bool) -> tuple[Tensor, Tensor | None]:
        if layout.mask is not None and layout.mask.shape[1] not in (1, query.shape[1]):
            raise InputError(f"attention_mask: for {layout.mask.shape[1]} heads, but there are {query.shape[1]}")
        if layout.cache is not None:
            key, value = layout.cache.extend(key, value)
        mask = self._scored(layout, query, key.shape[2])
        options: dict[str, Any] = {"mask": mask, "causal": self.causal, "scale": self.scale}
        dropout = self.dropout if self.training else 0.0
        if layout.lengths is not None:
            return kernel.attention_by_text(query, key, value, layout.lengths, self.causal, self.scale, dropout), None
        if self.pattern.watched:  # what comes out of the hook point is what mixes the values
            pattern = self.pattern(attention_weights(query, key, **options))
            return mixed(pattern, value, dropout), pattern if weights else None
        seen = attention_weights(query, key, **options) if weights else None
        return kernel.attention(query, key, value, dropout=dropout, shared=layout.shared, **options), seen

    def _scored(self, layout: Layout, query: Tensor, keys: int) -> Tensor | None:
        """What each token may attend to, with what relative positions add to its scores; made once for equal layers."""
        mask = layout.allowed()
        position = self.position_in(layout)
        if position is None or not position.relative:
            return mask
        name = ("bias", position.identity)
        known: Tensor | None = None if layout.shared is None or name[1] is None else layout.shared.get(name)
        if known is None:
            key_at = position.key_places(layout, keys, query.device)
            known = position.bias(key_at[:, keys - query.shape[2] :], key_at).to(query.dtype)
            if mask is not None:
                known = known + mask if mask.is_floating_point() else known.masked_fill(~mask, -math.inf)
            # what is learned is made anew by each block that the backward pass computes again
            again = known.requires_grad and layout.shared is not None and "again" in layout.shared
            if layout.shared is not None and name[1] is not None and not again:
                layout.shared[name] = known
        return known
