"""What Hugging Face's and timm's Swin have in common: names by stage and block, and what both can say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from zoo.checkpoint.family import Wanted

EPS = 1e-5
"""Of the norms whose eps is no field of theirs."""


class Stage(NamedTuple):
    """One stage of ours as references see it."""

    number: int
    depth: int
    width: int
    grid: tuple[int, int]
    """Rows and columns for images of the trained size."""
    blocks: list[Any]

    @property
    def attention(self) -> Any:
        """The attention of its first block."""
        return self.blocks[0].attention

    @property
    def feedforward(self) -> Any:
        """The feed-forward of its first block."""
        return self.blocks[0].feedforward

    @property
    def path(self) -> str:
        """Where it stands in our config."""
        return f"stack.stages.{self.number}.block"


def numbered(config: Any) -> Iterator[tuple[int, int, int]]:
    """The stage, the number within it and the number through all stages of each block."""
    layer = 0
    for stage, depth in enumerate(stage.depth for stage in config.stack.stages):
        for block in range(depth):
            yield stage, block, layer
            layer += 1


def checked_stages(wanted: Wanted, config: Any) -> list[Stage]:
    """The stages of a config, after checking what no reference's Swin can say.

    Raises:
        ConfigError: it is no Swin; the message names our field.
    """
    embedding, stack = config.embedding, config.stack
    wanted.part("embedding", embedding, "patch")
    wanted.part("stack", stack, "stages")
    for name, value in {"class_token": False, "registers": 0, "bias": True, "output_norm": None}.items():
        wanted.expect(f"embedding.{name}", getattr(embedding, name), value)
    block = stack.block
    wanted.part("stack.block", block, "residual")
    wanted.part("stack.block.attention", block.attention, "window")
    for path, norm in (("embedding.norm", embedding.norm), ("stack.merge_norm", stack.merge_norm)):
        wanted.part(path, norm, "layer-norm")
        wanted.expect(f"{path}.eps", norm.eps, EPS)
        wanted.expect(f"{path}.bias", norm.bias, True)
    stages, blocks = [], stack.blocks()
    for number, (stage, grid) in enumerate(zip(stack.stages, stack.grids(embedding.grid))):
        own = [blocks[layer] for at, _, layer in numbered(config) if at == number]
        stages.append(Stage(number, stage.depth, stack.width_of(number), grid, own))
    for each in stages:
        for number, one in enumerate(each.blocks):
            path = each.path if each.blocks[0] != block else "stack.block"
            _check_block(wanted, path, one, each, number)
    return stages


def _check_block(wanted: Wanted, path: str, block: Any, stage: Stage, number: int) -> None:
    wanted.expect(f"{path}.order", block.order, "pre")
    wanted.expect(f"{path}.layer_scale", block.layer_scale, None)
    wanted.expect(f"{path}.attention_output_dropout", block.attention_output_dropout, None, block.dropout)
    wanted.part(f"{path}.norm", block.norm, "layer-norm")
    wanted.expect(f"{path}.norm.bias", block.norm.bias, True)
    attention, size = block.attention, block.attention.head_size or stage.width // block.attention.heads
    wanted.part(f"{path}.attention", attention, "window")
    wanted.part(f"{path}.attention.position", attention.position, "relative-2d")
    for name, allowed in {
        "kv_heads": (None, attention.heads), "output_bias": (True,), "qk_norm": (None,), "output_norm": (None,),
        "scale": (None, size**-0.5),
    }.items():  # fmt: skip
        wanted.expect(f"{path}.attention.{name}", getattr(attention, name), *allowed)
    wanted.part(f"{path}.feedforward", block.feedforward, "mlp")
    wanted.expect(f"{path}.feedforward.bias", block.feedforward.bias, True)
    wanted.expect(f"{path}.feedforward.norm", block.feedforward.norm, None)
    first = stage.blocks[0]
    still = attention.model_copy(update={"shift": first.attention.shift})
    wanted.equal(path, block.model_copy(update={"attention": still}), "the stage's first block", first)


def check_windows(wanted: Wanted, stage: Stage, theirs: Any, any_size: bool) -> None:
    """Raises unless each block cuts the grid as the reference does, whose odd blocks shift.

    Args:
        theirs: a config of our attention that does what the reference's does.
        any_size: whether it has to be so for images of every size, or of the trained size alone.
    """
    for number, block in enumerate(stage.blocks):
        expected = theirs.model_copy(update={"shift": number % 2 == 1})
        attention = block.attention
        if any_size:
            for name in ("window", "shift") + (("small", "fill") if any(b.attention.shift for b in stage.blocks) else ()):
                wanted.expect(f"{stage.path}.attention.{name}", getattr(attention, name), getattr(expected, name))
            continue
        ours, other = attention.windows(stage.grid), expected.windows(stage.grid)
        wanted.expect(f"{stage.path}.attention.window", ours.window, other.window)
        if ours.shift != other.shift:
            name = "small" if attention.shift == expected.shift else "shift"
            wanted.expect(f"{stage.path}.attention.{name}", getattr(attention, name), getattr(expected, name))
        if ours.shift != (0, 0) and ours.padded != ours.grid:
            wanted.expect(f"{stage.path}.attention.fill", attention.fill, expected.fill)


def pattern() -> list[dict[str, Any]]:
    """Every second block shifts its windows."""
    return [{}, {"attention": {"shift": True}}]
