"""The residual block of attention and feed-forward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from zoo import kernel
from zoo.block.base import BlockConfig
from zoo.block.drop_path import DropPath
from zoo.config import Config, Problem, Slot, within
from zoo.config.base import Probability
from zoo.errors import InputError
from zoo.layout import Layout
from zoo.registry import make, part


class ResidualBlock(nn.Module):
    """Attention and feed-forward, each a branch that is added to the tokens; the norm stands where `order` says.

    Papers: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762 (post-norm); Xiong et al. 2020,
    https://arxiv.org/abs/2002.04745 (pre-norm); Touvron et al. 2021, https://arxiv.org/abs/2103.17239
    (layer scale); Liu et al. 2022, https://arxiv.org/abs/2111.09883 (norm of the branch); Wang and Komatsuzaki 2021,
    https://github.com/kingoflolz/mesh-transformer-jax (parallel).
    Shapes: (batch, tokens, width) -> (batch, tokens, width).
    """

    class Config(BlockConfig):
        """Config of the `residual` block."""

        type: Literal["residual"] = "residual"
        order: Literal["pre", "post", "branch", "parallel"] = "pre"
        """Where the norm stands: pre is x + f(norm(x)), post is norm(x + f(x)), branch is x + norm(f(x)); in these the
        feed-forward follows the attention. parallel is x + attention(norm(x)) + feedforward(norm(x))."""
        norm: Annotated[Config, Slot("norm", default="layer-norm")]
        """The norm; the two branches have one each."""
        shared_norm: bool = False
        """In parallel order: both branches read the same normed tokens, so that there is one norm instead of two."""
        attention: Annotated[Config, Slot("attention", default="full")]
        """The attention."""
        cross_attention: Annotated[Config | None, Slot("attention", default="full", optional=True)] = None
        """Attention to the tokens of another sequence, such as an encoder's, between the other two; it has a norm too."""
        feedforward: Annotated[Config, Slot("feedforward", default="mlp")]
        """The feed-forward."""
        dropout: Probability = 0.0
        """Share of each branch's output dropped in training, before it is added."""
        attention_output_dropout: Probability | None = None
        """The same of the attention's branch alone (default: `dropout`)."""
        layer_scale: float | None = None
        """Fresh value of a learned factor for each channel of a branch's output; null for no such factor."""

        def problems(self, *, width: int, **context: Any) -> Iterator[Problem]:
            if self.shared_norm and self.order != "parallel":
                yield ("shared_norm",), f"the branches of order {self.order!r} read different tokens; only 'parallel' can share"
            yield from within("norm", self.norm.problems(width=width, **context))
            yield from within("attention", self.attention.problems(width=width, **context))
            yield from within("cross_attention", self._across(width, context))
            yield from within("feedforward", self.feedforward.problems(width=width, **context))

        def _across(self, width: int, context: dict[str, Any]) -> Iterator[Problem]:
            across: Any = self.cross_attention
            if across is None:
                return
            if self.order == "parallel":
                yield (), "in parallel order there is no place between the attention and the feed-forward"
            if not part("attention", across.type).across:
                yield ("type",), f"{across.type!r} attends to its own tokens only; use 'full'"
            if across.causal:
                yield ("causal",), "the tokens of another sequence are neither before nor behind; use false"
            if across.position is not None:
                yield ("position",), "the tokens of another sequence have places of their own; use none"
            yield from across.problems(width=width, **context)

    def __init__(self, config: Config, *, width: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.order = config.order
        self.attention_norm = make(config.norm, width=width)
        self.attention = make(config.attention, width=width)
        self.attention_scale = None if config.layer_scale is None else LayerScale(width, config.layer_scale)
        across = config.cross_attention
        self.cross_attention_norm = None if across is None else make(config.norm, width=width)
        self.cross_attention = make(across, width=width)
        scaled = across is not None and config.layer_scale is not None
        self.cross_attention_scale = LayerScale(width, config.layer_scale or 0.0) if scaled else None
        self.feedforward_norm = None if config.shared_norm else make(config.norm, width=width)
        self.feedforward = make(config.feedforward, width=width)
        self.feedforward_scale = None if config.layer_scale is None else LayerScale(width, config.layer_scale)
        given = config.attention_output_dropout
        self.attention_dropout = nn.Dropout(config.dropout if given is None else given)
        self.dropout = nn.Dropout(config.dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, layout: Layout, *, weights: bool = False) -> tuple[Tensor, Any]:
        """The tokens after this block and, if asked for, the attention weights (batch, heads, tokens, tokens).

        A block with cross-attention gives a pair of them: also those to the other sequence, (batch, heads, tokens, others).
        """
        stepped = None if weights or layout.cache is None else kernel.step(self, x, layout)
        if stepped is not None:
            layout.cache.grown()
            return stepped, None
        if self.order == "parallel":
            return self._parallel(x, layout, weights)
        assert self.feedforward_norm is not None
        mixed, seen = self.attention(self._before(x, self.attention_norm), layout, weights=weights)
        x = self._add(x, self.attention_dropout(mixed), self.attention_scale, self.attention_norm)
        if self.cross_attention is not None and self.cross_attention_norm is not None:
            x, found = self._look_across(x, layout, weights)
            seen = (seen, found) if weights else None
        changed = self._fed(self._before(x, self.feedforward_norm), layout)
        return self._add(x, self.dropout(changed), self.feedforward_scale, self.feedforward_norm), seen

    def _look_across(self, x: Tensor, layout: Layout, weights: bool) -> tuple[Tensor, Tensor | None]:
        if layout.memory is None:
            raise InputError("encoder_hidden_states: missing; the blocks of this model attend to another sequence")
        norm = self.cross_attention_norm
        mixed, seen = self.cross_attention(self._before(x, norm), layout, memory=layout.memory, weights=weights)
        return self._add(x, self.attention_dropout(mixed), self.cross_attention_scale, norm), seen

    def _parallel(self, x: Tensor, layout: Layout, weights: bool) -> tuple[Tensor, Tensor | None]:
        normed = self.attention_norm(x)
        mixed, seen = self.attention(normed, layout, weights=weights)
        changed = self._fed(normed if self.feedforward_norm is None else self.feedforward_norm(x), layout)
        x = x + self._scaled(self.attention_dropout(mixed), self.attention_scale)
        return x + self._scaled(self.dropout(changed), self.feedforward_scale), seen

    def record(self, program: kernel.Program, layout: Layout) -> None:
        if self.training or self.attention_scale is not None:
            program.refuse()
        program.untouched(self.attention_dropout, self.dropout, self.drop_path)
        x = program.tokens
        normed = program.place(x[1])
        if self.order == "parallel":
            program.write(self.attention_norm, x, normed)
            other = normed if self.feedforward_norm is None else program.place(x[1])
            if self.feedforward_norm is not None:
                program.write(self.feedforward_norm, x, other)
            program.write(self.attention, normed, x, layout)
            program.write(self.feedforward, other, x, add=True)
            return
        self._record(program, normed, self.attention_norm, self.attention, layout)
        if self.cross_attention is not None:
            self._record(program, normed, self.cross_attention_norm, self.cross_attention, layout, across=True)
        self._record(program, normed, self.feedforward_norm, self.feedforward)

    def _record(self, program: kernel.Program, aside: kernel.Places, norm: Any, part: Any, *given: Any, **named: Any) -> None:
        """A branch, which `_add` adds to the tokens; `aside` is a place for what is between."""
        x = program.tokens
        if self.order == "branch":
            program.write(part, x, aside, *given, add=False, **named)
            program.write(norm, aside, x, add=True)
            return
        if self.order == "pre":
            program.write(norm, x, aside)
        program.write(part, aside if self.order == "pre" else x, x, *given, add=True, **named)
        if self.order == "post":
            program.write(norm, x, x)

    def _fed(self, x: Tensor, layout: Layout) -> Tensor:
        """What the feed-forward makes of each token; one that treats padding or texts apart is told of them."""
        given = (x, layout) if getattr(self.feedforward, "reads_layout", False) else (x,)
        changed: Tensor = self.feedforward(*given)
        return changed

    def _before(self, x: Tensor, norm: Any) -> Tensor:
        normed: Tensor = norm(x) if self.order == "pre" else x
        return normed

    def _add(self, x: Tensor, branch: Tensor, scale: nn.Module | None, norm: Any) -> Tensor:
        if self.order == "branch":
            branch = norm(branch)
        x = x + self._scaled(branch, scale)
        y: Tensor = norm(x) if self.order == "post" else x
        return y

    def _scaled(self, branch: Tensor, scale: nn.Module | None) -> Tensor:
        dropped: Tensor = self.drop_path(branch if scale is None else scale(branch))
        return dropped


class LayerScale(nn.Module):
    """A learned factor for each channel."""

    def __init__(self, width: int, fresh: float) -> None:
        super().__init__()
        self.fresh = fresh
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight

    def initialize(self, init: Any) -> None:
        nn.init.constant_(self.weight, self.fresh)

    def extra_repr(self) -> str:
        return f"fresh={self.fresh}"
