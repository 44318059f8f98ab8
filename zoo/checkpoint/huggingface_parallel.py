"""What Hugging Face's decoders with parallel blocks share: GPT-J, GPT-NeoX, Falcon, Cohere."""

from __future__ import annotations

from typing import Any

from zoo.checkpoint.family import Wanted
from zoo.checkpoint.fields import Fields
from zoo.checkpoint.huggingface_decoder import alike, check_causal_blocks
from zoo.checkpoint.rules import Grouped, Rule, rule


def read_head_size(fields: Fields, name: str, width: int, heads: int) -> int:
    """The size of a head; raises where heads do not divide the width, whose field has this `name`."""
    if heads < 1 or width % heads:
        raise fields.error(name, f"{width} is no multiple of the {heads} heads")
    return width // heads


def check_blocks(wanted: Wanted, config: Any, *orders: str, feedforward: str = "mlp", segments: str = "own") -> Any:
    """The block of a model whose layers are alike, embed tokens by nothing but a table, and attend to all before them.

    Args:
        orders: where the norm may stand.
        feedforward: the type that the family has.
        segments: whose vectors segments are.

    Raises:
        ConfigError: the family has no such model.
    """
    embedding, stack = config.embedding, config.stack
    wanted.part("embedding", embedding, "tokens")
    for name, value in {"segments": 0, "segment_vectors": segments, "norm": None, "count": "all", "position": None}.items():
        wanted.expect(f"embedding.{name}", getattr(embedding, name), value)
    blocks = check_causal_blocks(wanted, stack, *orders)
    alike(wanted, blocks)
    block, attention = blocks[0], blocks[0].attention
    wanted.part("stack.block.norm", block.norm, "layer-norm")
    wanted.part("stack.block.attention", attention, "full")
    wanted.part("stack.block.feedforward", block.feedforward, feedforward)
    head_size = attention.head_size or stack.width // attention.heads
    wanted.expect("stack.block.attention.scale", attention.scale, None, head_size**-0.5)
    return block


def only_in_training(wanted: Wanted, config: Any, attention: float | None = None, embedding: float | None = None) -> None:
    """Warns of dropouts that these families do not have.

    Args:
        attention: what theirs is behind the attention (default: as behind the feed-forward).
        embedding: what theirs is behind the embedding; None where it is a field of theirs.
    """
    stack, block = config.stack, config.stack.block
    wanted.training_only("stack.drop_path", stack.drop_path)
    wanted.training_only("stack.block.feedforward.dropout", block.feedforward.dropout)
    if embedding is not None:
        wanted.training_only("embedding.dropout", config.embedding.dropout, embedding)
    if block.attention_output_dropout is not None:
        theirs = block.dropout if attention is None else attention
        wanted.training_only("stack.block.attention_output_dropout", block.attention_output_dropout, theirs)


def joined_rules(theirs: str, groups: int) -> list[Rule]:
    """One linear layer of theirs that gives queries, keys and values, group after group of heads."""
    parts, operation = ("query", "key", "value"), Grouped(groups)
    return [
        rule(f"{theirs}.{kind}", *(f"stack.layers.{{n}}.attention.{part}.{kind}" for part in parts), operation=operation)
        for kind in ("weight", "bias")
    ]
