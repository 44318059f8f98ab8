"""What all attention parts share: the projections, and the fields that describe them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from zoo import kernel
from zoo.config import Config, Problem, Slot, within
from zoo.config.base import PositiveInt, Probability
from zoo.errors import InputError
from zoo.layout import Layout, Memory
from zoo.registry import make


class AttentionConfig(Config):
    """Fields of every attention; they survive when an override changes its type."""

    kind: ClassVar[str] = "attention"

    heads: PositiveInt
    """How many heads look at the tokens independently."""
    kv_heads: PositiveInt | None = None
    """How many heads of keys and values; each serves heads / kv_heads query heads (default: heads)."""
    head_size: PositiveInt | None = None
    """Size of one head (default: width / heads)."""
    bias: bool = True
    """Whether the query, key and value projections have a bias."""
    output_bias: bool = True
    """Whether the output projection has a bias."""
    qk_norm: Annotated[Config | None, Slot("norm", optional=True)] = None
    """A norm over each head's queries and keys (one for each of the two)."""
    output_norm: Annotated[Config | None, Slot("norm", optional=True)] = None
    """A norm over the joined heads, before the output projection."""
    position: Annotated[Config | None, Slot("position", default="rotary", optional=True)] = None
    """How queries and keys know their places, beside what the embedding adds."""
    scale: Annotated[float, Field(gt=0)] | None = None
    """What the scores are multiplied by (default: 1 / sqrt(head_size))."""
    causal: bool = False
    """Whether a token sees only itself and the tokens before it."""
    dropout: Probability = 0.0
    """Share of attention weights dropped in training."""

    windowed: ClassVar[bool] = False
    """Whether it attends within the windows of a grid, where places have a row and a column."""

    def problems(self, *, width: int, **context: Any) -> Iterator[Problem]:
        if self.head_size is None and width % self.heads:
            near = [heads for heads in range(1, width + 1) if width % heads == 0]
            best = min(near, key=lambda heads: abs(heads - self.heads))
            yield ("heads",), f"width {width} is not divisible by {self.heads} heads; {best} would do, or set head_size"
        if self.kv_heads is not None and self.heads % self.kv_heads:
            yield ("kv_heads",), f"{self.heads} heads cannot share {self.kv_heads} heads of keys and values evenly"
        if self.position is not None:
            if getattr(self.position, "where", None) != "attention":
                kind = getattr(self.position, "type")
                yield ("position",), f"{kind!r} is added to the tokens, so it stands at embedding.position"
            elif getattr(self.position, "windowed", False) and not self.windowed:
                kind = getattr(self.position, "type")
                yield ("position",), f"{kind!r} knows places within windows only; use attention 'window', or position: none"
            else:
                context |= {"head_size": self.head_size or max(width // self.heads, 1), "heads": self.heads}
                context["causal"] = self.causal
                yield from within("position", self.position.problems(width=width, **context))


class HookPoint(nn.Module):
    """The identity, for a value that no module gives: hooks on it see the value and may replace it."""

    @property
    def watched(self) -> bool:
        """Whether anything is hooked to it; where nothing is, its value need not be computed."""
        return bool(self._forward_hooks or self._forward_pre_hooks or self._backward_hooks or self._backward_pre_hooks)

    def forward(self, x: Tensor) -> Tensor:
        return x


class Attention(nn.Module):
    """Projections and output of multi-head attention; a part says who attends to whom in `attend`.

    `pattern` is where the attention weights can be watched and replaced (`zoo.capture`, `zoo.intervene`): a part
    that forms them passes them through it, and mixes the values by what comes out.
    """

    sharding: ClassVar[dict[str, str]] = {
        "heads": "count",
        "kv_heads": "count",
        "query": "column",
        "key": "column",
        "value": "column",
        "query_norm": "head",
        "key_norm": "head",
        "position": "head",
        "output_norm": "whole",
        "output": "row",
    }
    """How tensor-parallel processes divide it: see `zoo.training.sharding`."""

    skips_padding: ClassVar[bool] = False
    """Whether `attend` reads `layout.lengths`, so that texts of one row do not see each other."""

    window: Any
    across: ClassVar[bool] = False
    """Whether it can attend to the tokens of another sequence."""

    def __init__(self, config: AttentionConfig, *, width: int) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.heads, config.kv_heads or config.heads
        self.head_size = config.head_size or width // config.heads
        self.scale = config.scale or self.head_size**-0.5
        self.dropout, self.causal = config.dropout, config.causal
        inner, kv_inner = self.heads * self.head_size, self.kv_heads * self.head_size
        self.query = kernel.Linear(width, inner, config.bias)
        self.key = kernel.Linear(width, kv_inner, config.bias)
        self.value = kernel.Linear(width, kv_inner, config.bias)
        self.query_norm = make(config.qk_norm, width=self.head_size)
        self.key_norm = make(config.qk_norm, width=self.head_size)
        self.window = getattr(config, "window", None)
        self.position = self.make_position(config.position)
        self.pattern = HookPoint()
        self.output_norm = make(config.output_norm, width=inner)
        self.output = kernel.Linear(inner, width, config.output_bias)

    def forward(
        self, x: Tensor, layout: Layout, *, memory: Memory | None = None, weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Attends from `x` (batch, tokens, width) to itself, or to the tokens of a `memory`.

        Returns:
            The output (batch, tokens, width) and, if asked for, the attention weights
            (batch, heads, tokens, others) as they are before dropout.
        """
        if memory is not None:
            mixed, seen = self._across(x, layout, memory, weights)
        else:
            query, key, value = map(self._split, kernel.project(x, self.query, self.key, self.value))
            if self.query_norm is not None and self.key_norm is not None:
                query, key = self.query_norm(query), self.key_norm(key)
            position = self.position_in(layout)
            if position is not None:
                query, key = position.turned(query, key, layout)
            mixed, seen = self.attend(query, key, value, layout, weights)
        joined = mixed.transpose(1, 2).flatten(2)
        if self.output_norm is not None:
            joined = self.output_norm(joined)
        return self.output(joined), seen

    def attend(self, query: Tensor, key: Tensor, value: Tensor, layout: Layout, weights: bool) -> tuple[Tensor, Tensor | None]:
        """Mixes the values: (batch, heads, tokens, head_size) each, in and out.

        A part that can decode hands its keys and values to `layout.cache`, which gives those of earlier tokens with them.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say who attends to whom")

    def make_position(self, config: Any) -> Any:
        """A position's module for this attention, or for all of a stack that are like it."""
        known = {"head_size": self.head_size, "heads": self.heads, "window": self.window, "causal": self.causal}
        return make(config, **{name: known[name] for name in getattr(config, "context", ("head_size", "heads"))})

    def position_in(self, layout: Layout) -> Any:
        """The attention's own position, or the one that its stack shares among all layers."""
        return layout.position if self.position is None else self.position

    def _across(self, x: Tensor, layout: Layout, memory: Memory, weights: bool) -> tuple[Tensor, Tensor | None]:
        """What `x` finds in another sequence.

        In decoding its keys and values are computed once. Several rows may share a row of the memory, as the beams of a text
        do; their queries are then as many tokens of one row, so that its keys are read once for all.
        """
        query = self._split(kernel.project(x, self.query)[0])
        query = query if self.query_norm is None else self.query_norm(query)
        key, value = self._remembered(memory, layout)
        rows, tokens = query.shape[0], query.shape[2]
        several = rows // key.shape[0]
        if several > 1 and (weights or self.pattern.watched):
            key, value = (each.repeat_interleave(several, 0) for each in (key, value))
            memory = memory._replace(mask=None if memory.mask is None else memory.mask.repeat_interleave(several, 0))
        elif several > 1:
            query = query.unflatten(0, (-1, several)).transpose(1, 2).flatten(2, 3)
        mixed, seen = self.attend(query, key, value, layout.across(memory), weights)
        if mixed.shape[0] < rows:
            mixed = mixed.unflatten(2, (several, tokens)).transpose(1, 2).flatten(0, 1)
        return mixed, seen

    def _remembered(self, memory: Memory, layout: Layout) -> tuple[Tensor, Tensor]:
        """The keys and values of a memory: (batch, key heads, others, head_size) each."""
        if layout.cache is not None and layout.cache.across is not None:
            kept: tuple[Tensor, Tensor] = layout.cache.across
            return kept
        if memory.tokens is None:
            raise InputError("encoder_hidden_states: neither given nor kept by an earlier call")
        key, value = map(self._split, kernel.project(memory.tokens, self.key, self.value))
        key = key if self.key_norm is None else self.key_norm(key)
        if layout.cache is not None:
            layout.cache.across = key, value = key.contiguous(), value.contiguous()
        return key, value

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_size)).transpose(1, 2)
