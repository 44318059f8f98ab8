"""Attention whose cost grows with the number of tokens, not with its square."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from torch import Tensor
from torch.nn import functional

from zoo.attention.base import Attention, AttentionConfig
from zoo.config import Problem
from zoo.layout import Layout


class LinearAttention(Attention):
    """Attention with positive features instead of a softmax, so that keys and values are summed only once.

    The weight of a key is f(query) f(key), with f(x) = elu(x) + 1, divided by the sum over all keys.
    Paper: Katharopoulos et al. 2020, https://arxiv.org/abs/2006.16236.
    Shapes: (batch, tokens, width) -> (batch, tokens, width). Cost: O(tokens x width x head_size) time.
    """

    class Config(AttentionConfig):
        """Config of `linear-attention`."""

        type: Literal["linear-attention"] = "linear-attention"

        def problems(self, *, width: int, **context: Any) -> Iterator[Problem]:
            yield from super().problems(width=width, **context)
            # a field that would be ignored is an error, never a silent difference
            if self.causal:
                yield ("causal",), "linear-attention here sees all tokens; its causal form is not offered"
            if self.dropout:
                yield ("dropout",), "linear-attention never makes the weights that could be dropped; set it to 0"
            if self.scale is not None:
                yield ("scale",), "linear-attention has no softmax whose scores could be scaled"

    def attend(self, query: Tensor, key: Tensor, value: Tensor, layout: Layout, weights: bool) -> tuple[Tensor, Tensor | None]:
        shared = self.heads // self.kv_heads
        if shared > 1:
            key, value = key.repeat_interleave(shared, dim=1), value.repeat_interleave(shared, dim=1)
        query, key = functional.elu(query) + 1.0, functional.elu(key) + 1.0
        if layout.mask is not None:
            key = key * layout.mask.transpose(-1, -2).to(key.dtype)
        total = (query * key.sum(dim=-2, keepdim=True)).sum(dim=-1, keepdim=True).clamp(min=1e-12)
        mixed = query @ (key.transpose(-1, -2) @ value) / total
        return mixed, query @ key.transpose(-1, -2) / total if weights else None
