"""A stack of equal blocks, or of a pattern that repeats."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, WithJsonSchema, field_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo.config import Config, Problem, Slot, within
from zoo.config.base import PositiveInt, Probability, raise_problems
from zoo.config.merge import difference, merge
from zoo.config.messages import found
from zoo.layout import Layout
from zoo.registry import make
from zoo.stack.base import StackConfig

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
        final_norm: Annotated[Config | None, Slot("norm", default="layer-norm", optional=True)] = None
        """The norm after the last block."""

        @field_validator("pattern")
        @classmethod
        def _whole_changes(cls, pattern: list[dict[str, Any]] | None, info: ValidationInfo) -> Any:
            # stored as what differs from the block, with every part of another type written out whole:
            # together with the block, that holds all defaults
            block = info.data.get("block")
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

        def blocks(self) -> list[Any]:
            """The config of each block, from the first to the last."""
            kinds = [BLOCK.validate(merge(self.block, change, BLOCK)) for change in self.pattern or [{}]]
            return [kinds[layer % len(kinds)] for layer in range(self.depth)]

        def problems(self, **context: Any) -> Iterator[Problem]:
            context["width"] = self.width
            yield from within("block", self.block.problems(**context))
            for number, block in enumerate(self.blocks()[: len(self.pattern or [])]):
                yield from within("pattern", within(number, block.problems(**context)))
            if self.final_norm is not None:
                yield from within("final_norm", self.final_norm.problems(**context))

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.width = config.width
        last = max(config.depth - 1, 1)
        self.layers = nn.ModuleList(
            make(block, width=config.width, drop_path=config.drop_path * number / last)
            for number, block in enumerate(config.blocks())
        )
        self.final_norm = make(config.final_norm, width=config.width)
        self.checkpointing = False

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
        states, seen = ({0: x} if 0 in hidden_states else {}), {}
        for number, layer in enumerate(self.layers):
            if self.checkpointing and self.training:
                x, weights = checkpoint(layer, x, layout, weights=number in attentions, use_reentrant=False)
            else:
                x, weights = layer(x, layout, weights=number in attentions)
            if number + 1 in hidden_states:
                states[number + 1] = x
            if weights is not None:
                seen[number] = weights
        return (x if self.final_norm is None else self.final_norm(x)), states, seen
