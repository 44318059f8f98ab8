"""Stages of blocks, with fewer and wider tokens from one to the next."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo.config import Config, Problem, Slot, within
from zoo.config.base import PositiveInt, Probability, raise_problems
from zoo.config.merge import difference, merge
from zoo.config.messages import found
from zoo.errors import InputError
from zoo.layout import Layout
from zoo.registry import make
from zoo.stack.base import Feature, StackConfig
from zoo.stack.merging import PatchMerging, merged_grid
from zoo.stack.uniform import BLOCK, Change, whole_changes


class Stage(Config):
    """One stage: blocks whose tokens are equally many and equally wide."""

    depth: PositiveInt
    """How many blocks."""
    heads: PositiveInt | None = None
    """How many heads their attentions have (default: what the stack's block says)."""
    block: Change | None = None
    """Other changes of the block in this stage, behind those of the pattern."""


class StagesStack(nn.Module):
    """Stages of blocks; between two stages, 2 x 2 neighbouring tokens become one of twice the width.

    Paper: Liu et al. 2021, https://arxiv.org/abs/2103.14030. Shapes: (batch, rows x columns, width) -> (batch, tokens of the
    last grid, width x 2^(stages - 1)). Blocks are numbered through all stages, as `layers`.
    """

    class Config(StackConfig):
        """Config of a `stages` stack."""

        type: Literal["stages"] = "stages"
        block: Annotated[Config, BLOCK]
        """What each block is."""
        stages: Annotated[list[Stage], Field(min_length=1, max_length=16)]
        """The stages, from the first to the last."""
        pattern: Annotated[list[Change], Field(min_length=1)] | None = None
        """Changes of the block, for the first, second, ... layer of each stage, and round again; `{}` changes nothing."""
        drop_path: Probability = 0.0
        """Share of examples for which the last block's branches are dropped in training; it grows from 0 linearly, through
        all stages."""
        merge_norm: Annotated[Config | None, Slot("norm", default="layer-norm", optional=True)] = Field(
            default="layer-norm", validate_default=True
        )
        """The norm of four tokens that become one."""
        final_norm: Annotated[Config | None, Slot("norm", default="layer-norm", optional=True)] = None
        """The norm after the last block."""

        @field_validator("pattern")
        @classmethod
        def _whole_changes(cls, pattern: list[dict[str, Any]] | None, info: ValidationInfo) -> Any:
            return whole_changes(pattern, info.data.get("block"))

        @field_validator("stages")
        @classmethod
        def _whole_stages(cls, stages: list[Stage], info: ValidationInfo) -> Any:
            block = info.data.get("block")
            if block is None:
                return stages
            whole, problems = [], []
            for number, stage in enumerate(stages):
                try:
                    changed = BLOCK.validate(merge(block, _change(stage), BLOCK))
                    start = BLOCK.validate(merge(block, _change(stage.model_copy(update={"block": None})), BLOCK))
                    stated = _with_stated(difference(start, changed, BLOCK), stage.block or {})
                    whole.append(stage.model_copy(update={"block": stated or None}))
                except ValidationError as error:
                    problems += list(within(number, within("block", found(error))))
            raise_problems("stages", problems)
            return whole

        @property
        def depth(self) -> int:
            """How many blocks there are in all stages."""
            return sum(stage.depth for stage in self.stages)

        @property
        def output_width(self) -> int:
            """Size of a token's vector behind the last stage."""
            return self.width_of(len(self.stages) - 1)

        def width_of(self, stage: int) -> int:
            """Size of a token's vector in a stage."""
            return int(self.width * 2**stage)

        def stage_of(self) -> list[int]:
            """The stage of each block, from the first block to the last."""
            return [number for number, stage in enumerate(self.stages) for _ in range(stage.depth)]

        def blocks(self) -> list[Any]:
            """The config of each block, from the first to the last."""
            made: list[Any] = []
            for stage in self.stages:
                kinds = [merge(self.block, change, BLOCK) for change in self.pattern or [{}]][: stage.depth]
                whole = [BLOCK.validate(merge(kind, _change(stage), BLOCK)) for kind in kinds]
                made += [whole[layer % len(whole)] for layer in range(stage.depth)]
            return made

        def grids(self, grid: tuple[int, int]) -> list[tuple[int, int]]:
            """Rows and columns in each stage, for those in the first."""
            grids = [grid]
            for _ in self.stages[1:]:
                grids.append(merged_grid(grids[-1]))
            return grids

        def features(self) -> dict[str, Feature]:
            """The feature maps that the stack can give: `stem`, and `stage1`, `stage2`, ... before tokens are merged."""
            known, state = {"stem": Feature(0, 1, self.width)}, 0
            for number, stage in enumerate(self.stages):
                state += stage.depth
                known[f"stage{number + 1}"] = Feature(state, 2**number, self.width_of(number))
            return known

        def problems(self, *, grid: Any = None, prefix: int = 0, **context: Any) -> Iterator[Problem]:
            if prefix:
                yield (
                    ("type",),
                    f"'stages' merges tokens of a grid, so there can be no class or register tokens ({prefix} here)",
                )
            if grid is None:
                yield ("type",), "'stages' merges tokens of a grid, and the tokens here form none that is whole"
                return
            context["prefix"] = prefix
            grids, stages, seen = self.grids(grid), self.stage_of(), []
            for number, block in enumerate(self.blocks()):
                stage = stages[number]
                if (stage, block) in seen:
                    continue
                seen.append((stage, block))
                found = block.problems(width=self.width_of(stage), grid=grids[stage], **context)
                yield from within("stages", within(stage, within("block", found)))
            if self.merge_norm is not None:
                yield from within("merge_norm", self.merge_norm.problems(width=4 * self.width, **context))
            if self.final_norm is not None:
                yield from within("final_norm", self.final_norm.problems(width=self.output_width, **context))

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.width, self.output_width = config.width, config.output_width
        self.stage_of, last = config.stage_of(), max(config.depth - 1, 1)
        self.layers = nn.ModuleList(
            make(block, width=config.width_of(stage), drop_path=config.drop_path * number / last)
            for number, (block, stage) in enumerate(zip(config.blocks(), self.stage_of))
        )
        self.merges = nn.ModuleList(
            PatchMerging(config.merge_norm, width=config.width_of(stage)) for stage in range(len(config.stages) - 1)
        )
        self.final_norm = make(config.final_norm, width=self.output_width)
        self.checkpointing = False

    def forward(
        self, x: Tensor, layout: Layout, *, hidden_states: Collection[int] = (), attentions: Collection[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor], dict[int, Tensor]]:
        """Runs the blocks.

        Args:
            hidden_states: which states are wanted; 0 is the input, n what the n-th block gives, before tokens are merged.
            attentions: the layers, from 0, whose attention weights are wanted.

        Returns:
            The normed output, the wanted states (not normed) and the wanted attention weights.

        Raises:
            InputError: the tokens form no grid, or some are masked.
        """
        if layout.mask is not None:
            raise InputError("attention_mask: tokens of this model are merged, so that none can be left out")
        states, seen = ({0: x} if 0 in hidden_states else {}), {}
        stage = 0
        for number, layer in enumerate(self.layers):
            if self.stage_of[number] != stage:
                x, layout = self.merges[stage](x, layout), self._merged(layout)
                stage += 1
            if self.checkpointing and self.training:
                x, weights = checkpoint(layer, x, layout, weights=number in attentions, use_reentrant=False)
            else:
                x, weights = layer(x, layout, weights=number in attentions)
            if number + 1 in hidden_states:
                states[number + 1] = x
            if weights is not None:
                seen[number] = weights
        return (x if self.final_norm is None else self.final_norm(x)), states, seen

    def behind(self, layout: Layout) -> Layout:
        """What the tokens are behind the last stage."""
        for _ in self.merges:
            layout = self._merged(layout)
        return layout

    def _merged(self, layout: Layout) -> Layout:
        assert layout.grid is not None
        return layout._replace(grid=merged_grid(layout.grid), shared=None if layout.shared is None else {})


def _change(stage: Stage) -> dict[str, Any]:
    """What a stage changes of the block, its number of heads included."""
    change = dict(stage.block or {})
    if stage.heads is None:
        return change
    attention = change.get("attention") or {}
    attention = {"type": attention} if isinstance(attention, str) else dict(attention)
    return {**change, "attention": {**attention, "heads": stage.heads}}


def _with_stated(change: dict[str, Any], stated: dict[str, Any]) -> dict[str, Any]:
    """A change as it is stored, with what was stated though it is no difference: the pattern may say otherwise."""
    kept = dict(change)
    for name, value in stated.items():
        if isinstance(value, dict) and isinstance(change.get(name), dict):
            kept[name] = _with_stated(change[name], value)
        else:
            kept.setdefault(name, value)
    return kept
