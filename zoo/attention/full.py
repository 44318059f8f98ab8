"""Attention of every token to every token."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
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

    def record(
        self,
        program: kernel.Program,
        at: kernel.Places,
        to: kernel.Places,
        layout: Layout,
        *,
        across: bool = False,
        add: bool = True,
    ) -> None:
        if self.query_norm is not None or self.output_norm is not None or self.pattern.watched:
            program.refuse()
        position = None if across else self.position_in(layout)
        turned, interleaved = (0, False) if position is None else program.write(position)
        read = (self.query,) if across else (self.query, self.key, self.value)
        projected = program.place(sum(module.out_features for module in read))
        found = program.place(self.query.out_features)
        program.product(at, projected, *read)
        look = self._look_across if across else self._look
        program.attend(projected, found, look, self, turned, interleaved)
        program.product(found, to, self.output, add=add)

    def _look(self, x: Tensor, layer: int | None, layout: Layout) -> kernel.Look | None:
        """What one more token of each text, of which `x` (rows, 1, width) stands for the queries, looks at."""
        rows = x.shape[0]
        room = (layout.cache if layer is None else layout.cache.layers[layer]).room(rows)
        if room is None or layout.texts is not None or layout.lengths is not None:
            return None
        keys, values, first, end = room
        number, position, angles = end - first + 1, self.position_in(layout), None
        if position is None:
            scores = layout.mask
        else:
            query = x[:, None]
            if position.relative:
                position.turned(query, query, layout)
            else:
                angles = position.tables(layout, query)
            scores = self._scored(layout, query, number)
        if scores is not None and (scores := kernel.to_add(scores, rows, self.heads, number, layout.shared)) is None:
            return None
        return kernel.Look(keys, values, number, first, scores=scores, angles=angles)

    def _look_across(self, x: Tensor, layer: int | None, layout: Layout) -> kernel.Look | None:
        cache = layout.cache if layer is None else layout.cache.layers[layer]
        if layout.memory is None or cache.across is None:
            return None
        (keys, values), scores = cache.across, layout.memory.mask
        number = keys.shape[2]
        usual = (
            keys.dtype == torch.float32 and keys.is_contiguous() and values.is_contiguous() and x.shape[0] % keys.shape[0] == 0
        )
        if scores is not None and usual:
            scores = kernel.to_add(scores, keys.shape[0], self.heads, number, layout.shared)
            usual = scores is not None
        return kernel.Look(keys, values, number, own=False, scores=scores) if usual else None

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
