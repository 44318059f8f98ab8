"""A stack of equal blocks, or of a pattern that repeats."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, WithJsonSchema, field_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo import kernel
from zoo.config import Config, Problem, Slot, within
from zoo.config.base import PositiveInt, Probability, raise_problems
from zoo.config.merge import difference, merge
from zoo.config.messages import found
from zoo.errors import InputError
from zoo.layout import Layout
from zoo.registry import make, part
from zoo.stack.base import Feature, StackConfig
from zoo.stack.padding import with_padding, without_padding

BLOCK = Slot("block", default="residual")
Change = Annotated[dict[str, Any], WithJsonSchema({"x-slot": "block", "x-optional": False})]


class UniformStack(nn.Module):
    """`depth` blocks of one width, alike or after a `pattern` that repeats, then a norm.

    Shapes: (batch, tokens, width) -> (batch, tokens, width).
    """

    class Config(StackConfig):
        """Config of a `uniform` stack."""

        type: Literal["uniform"] = "uniform"
        depth: PositiveInt
        """How many blocks."""
        block: Annotated[Config, BLOCK]
        """What each block is."""
        pattern: Annotated[list[Change], Field(min_length=1)] | None = None
        """Changes of the block, for the first, second, ... layer, and round again; `{}` changes nothing."""
        drop_path: Probability = 0.0
        """Share of examples for which the last block's branches are dropped in training; it grows from 0 linearly."""
        position: Annotated[Config | None, Slot("position", default="relative-bucket", optional=True)] = None
        """A position that acts inside of attention and is one for all layers; attention with a position of its own has that
        instead."""
        final_norm: Annotated[Config | None, Slot("norm", default="layer-norm", optional=True)] = None
        """The norm after the last block."""
        dropout: Probability = 0.0
        """Share of values dropped in training behind that norm."""
        padding: Literal["compute", "skip"] = "compute"
        """Whether tokens of padding are computed like all others, as references do, or left out. Then their vectors are
        zero behind the stack, those of real tokens stay the same, and a batch of uneven texts takes the time of its
        real tokens alone. It is computed all the same where hidden states or attention weights are asked for."""

        @field_validator("pattern")
        @classmethod
        def _whole_changes(cls, pattern: list[dict[str, Any]] | None, info: ValidationInfo) -> Any:
            return whole_changes(pattern, info.data.get("block"))

        def blocks(self) -> list[Any]:
            """The config of each block, from the first to the last."""
            kinds = [BLOCK.validate(merge(self.block, change, BLOCK)) for change in self.pattern or [{}]]
            return [kinds[layer % len(kinds)] for layer in range(self.depth)]

        def features(self) -> dict[str, Feature]:
            """The feature maps that the stack can give: `stem`, and `stage1`, `stage2`, ... behind each block."""
            return {"stem" if state == 0 else f"stage{state}": Feature(state, 1, self.width) for state in range(self.depth + 1)}

        def problems(self, **context: Any) -> Iterator[Problem]:
            context["width"] = self.width
            yield from within("block", self.block.problems(**context))
            for number, block in enumerate(self.blocks()[: len(self.pattern or [])]):
                yield from within("pattern", within(number, block.problems(**context)))
            if self.final_norm is not None:
                yield from within("final_norm", self.final_norm.problems(**context))
            yield from within("position", self._shared(context))
            for block in self.blocks() if self.padding == "skip" else []:
                attention = getattr(block, "attention", None)
                if getattr(block, "cross_attention", None) is not None:
                    yield ("padding",), "attention to another sequence needs the rows as they are; use padding: compute"
                    return
                if attention is None or not part("attention", attention.type).skips_padding:
                    kind = getattr(attention, "type", "none")
                    yield ("padding",), f"attention {kind!r} cannot leave padding out; use padding: compute"
                    return
                position: Any = getattr(attention, "position", None) or self.position
                if position is not None and part("position", position.type).relative:
                    yield ("padding",), f"positions of type {position.type!r} cannot leave padding out; use padding: compute"
                    return

        def _shared(self, context: dict[str, Any]) -> Iterator[Problem]:
            """What speaks against the position that all layers share."""
            position: Any = self.position
            if position is None:
                return
            parts: list[Any] = [getattr(block, "attention", None) for block in self.blocks()]
            if getattr(position, "where", None) != "attention":
                yield (), f"{position.type!r} is added to the tokens, so it stands at embedding.position"
            elif any(attention is None or attention.windowed for attention in parts):
                yield (), "windows have places of their own; put it at stack.block.attention.position, or use none"
            elif getattr(position, "windowed", False):
                yield (), f"{position.type!r} knows places within windows only; put it at stack.block.attention.position"
            else:
                kinds = [(a.heads, a.head_size or self.width // a.heads, a.causal) for a in parts if a.position is None]
                if len(set(kinds)) > 1:
                    yield (), "layers with different heads cannot share it; give each attention a position of its own"
                for heads, size, causal in kinds[:1]:
                    yield from position.problems(**{**context, "heads": heads, "head_size": size, "causal": causal})

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.width = config.width
        last = max(config.depth - 1, 1)
        self.layers = nn.ModuleList(
            make(block, width=config.width, drop_path=config.drop_path * number / last)
            for number, block in enumerate(config.blocks())
        )
        parts: list[Any] = [getattr(layer, "attention", None) for layer in self.layers] if config.position else []
        owners = [attention for attention in parts if attention.position is None]
        self.position = owners[0].make_position(config.position) if owners else None
        self.final_norm = make(config.final_norm, width=config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.checkpointing = False
        self.skips_padding = config.padding == "skip"

    @property
    def decodes(self) -> bool:
        """Whether no token depends on later ones, so that keys and values can be kept."""
        return all(getattr(getattr(layer, "attention", None), "causal", False) for layer in self.layers)

    @property
    def across(self) -> bool:
        """Whether blocks attend to another sequence."""
        return any(getattr(layer, "cross_attention", None) is not None for layer in self.layers)

    def forward(
        self, x: Tensor, layout: Layout, *, hidden_states: Collection[int] = (), attentions: Collection[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor], dict[int, Tensor]]:
        """Runs the blocks.

        Args:
            hidden_states: which states are wanted; 0 is the input, n what the n-th block gives.
            attentions: the layers, from 0, whose attention weights are wanted.

        Returns:
            The normed output, the wanted states (not normed) and the wanted attention weights. What
            was not asked for is not kept.
        """
        if self.skips_padding and not hidden_states and not attentions and not watched(self):
            packed = without_padding(x, layout)
            if packed is not None:
                shape, (inner, own, places) = (x.shape[0], x.shape[1]), packed
                y, _, _ = self._run(inner, own, (), ())
                if layout.shared is not None and own.shared is not None and "routed" in own.shared:
                    layout.shared["routed"] = own.shared["routed"]
                return with_padding(y, places, shape), {}, {}
        return self._run(x, layout, hidden_states, attentions)

    def _run(
        self, x: Tensor, layout: Layout, hidden_states: Collection[int], attentions: Collection[int]
    ) -> tuple[Tensor, dict[int, Tensor], dict[int, Tensor]]:
        states, seen = ({0: x} if 0 in hidden_states else {}), {}
        cache = layout.cache
        if self.position is not None:
            layout = layout._replace(position=self.position)
        if cache is not None and not hidden_states and not attentions:
            stepped = kernel.step(self, x, layout)
            if stepped is not None:
                for each in cache.layers:
                    each.grown()
                return stepped, {}, {}
        if self.checkpointing and self.training and layout.shared is not None:
            layout.shared["again"] = True
        if cache is not None and self.checkpointing and self.training:
            raise InputError("use_cache: gradient checkpointing computes blocks twice in training, which a cache forbids")
        for number, layer in enumerate(self.layers):
            own = layout if cache is None else layout._replace(cache=cache.layers[number])
            if self.checkpointing and self.training:
                x, weights = checkpoint(layer, x, own, weights=number in attentions, use_reentrant=False)
            else:
                x, weights = layer(x, own, weights=number in attentions)
            if number + 1 in hidden_states:
                states[number + 1] = x
            if weights is not None:
                seen[number] = weights
        return self.dropout(x if self.final_norm is None else self.final_norm(x)), states, seen

    def record(self, program: kernel.Program, layout: Layout) -> None:
        if self.training:
            program.refuse()
        for number, layer in enumerate(self.layers):
            program.layer = number
            program.write(layer, layout)
        if self.final_norm is not None:
            program.write(self.final_norm, program.tokens, program.tokens)
        program.untouched(self.dropout)


def whole_changes(pattern: list[dict[str, Any]] | None, block: Any) -> list[dict[str, Any]] | None:
    """A pattern as it is stored: what differs from the block, with every part of another type written out whole.

    Together with the block, that holds all defaults.

    Raises:
        ValidationError: a change with which there is no such block.
    """
    if pattern is None or block is None:
        return pattern
    changes: list[dict[str, Any]] = []
    problems: list[Problem] = []
    for number, change in enumerate(pattern):
        try:
            changes.append(difference(block, BLOCK.validate(merge(block, change, BLOCK)), BLOCK))
        except ValidationError as error:
            problems += list(within(number, found(error)))
    raise_problems("pattern", problems)
    return changes


def watched(module: nn.Module) -> bool:
    """Whether somebody looks at attention weights, which are formed for whole batches only."""
    return any(getattr(each, "watched", False) for each in module.modules())
