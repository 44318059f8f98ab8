"""A model with all the parts of a large one, but few layers and small sizes."""

from __future__ import annotations

import math
from typing import Any

from zoo.config.resolve import validate

WINDOW = 3
"""Side of the windows of a grid."""
WORDS = 61
"""How many tokens a vocabulary has, unless one that means something stands behind them."""


def shrink(config: Any, depth: int = 2, head_size: int = 8, stages: int | None = None) -> Any:
    """The config with little of everything: same parts, same fields, small numbers.

    The number of layers is at least that of the stack's pattern; heads keep their number up to four, and their size where
    their scores are scaled by a number of their own. Windows and trained lengths end within the texts that are compared.
    Of a stack of stages, only the first ones are kept where a number of `stages` is given, with one block each.
    """
    if hasattr(config, "encoder"):
        return _shrink_sides(config, depth, head_size)
    if config.stack is None:  # of two towers, each
        small = {name: shrink(getattr(config, name), depth, head_size, stages) for name in ("vision", "text")}
        return validate(config.model_dump() | {name: each.model_dump() for name, each in small.items()})
    fields = config.model_dump()
    if fields["stack"]["type"] == "stages":
        return _shrink_stages(fields, depth, head_size, stages)
    embedding, stack = fields["embedding"], fields["stack"]
    stack["depth"] = min(stack["depth"], max(depth, len(stack["pattern"] or [])))
    width, before = stack["width"], stack["block"]["attention"]
    heads = min(before["heads"], 4)
    if any(attention.get("scale") is not None for attention in _named(fields, "attention")):
        head_size = before.get("head_size") or width // before["heads"]
    turned = [position.get("fraction") or 1.0 for position in _named(fields, "position") if position.get("type") == "rotary"]
    head_size = max([head_size, *(math.ceil(4 / share) for share in turned)])  # two pairs, which turn differently
    stack["width"] = heads * head_size
    groups = {before["heads"]: heads, 1: 1}.get(before.get("kv_heads"), max(heads // 2, 1))
    small = {"heads": heads, "head_size": head_size, "kv_heads": groups}
    attentions = [*_named(fields, "attention"), *_named(fields, "cross_attention")]
    for attention in attentions:  # those of a pattern state only what differs
        window = attention.get("window") or 0
        small["window"] = min(window, 5) if isinstance(window, int) else [min(side, WINDOW) for side in window]
        attention.update({name: value for name, value in small.items() if attention.get(name) is not None})
    for position in _named(fields, "position"):
        if position.get("type") == "rotary" and position.get("length") is not None:
            position["length"] = min(position["length"], 20)
            if (position.get("scaling") or {}).get("type") == "dynamic":
                position["scaling"]["length"] = position["length"]
    for feedforward in (part for name in ("feedforward", "expert", "shared") for part in _named(fields, name)):
        if feedforward.get("experts") is not None:
            feedforward["experts"] = min(feedforward["experts"], max(4, feedforward.get("top_k") or 0))
        if feedforward.get("hidden") is not None:
            feedforward["hidden"] = max(8, feedforward["hidden"] * stack["width"] // width)
    for scaled, power in ((embedding, 0.5), (fields["head"] or {}, -0.5)):  # by a power of the width, which is another now
        if scaled.get("scale") is not None and math.isclose(scaled["scale"], width**power):
            scaled["scale"] = stack["width"] ** power
    if embedding["type"] == "patch":
        patch = tuple(min(side, 4) for side in embedding["patch_size"])
        embedding["image_size"] = tuple(
            min(size // old, 5) * new for size, old, new in zip(embedding["image_size"], embedding["patch_size"], patch)
        )
        embedding["patch_size"] = patch
    if embedding["type"] == "tokens":
        pool = (fields["head"] or {}).get("pool") or {}
        last = max(embedding["padding"] or 0, pool.get("padding") or 0)
        embedding["vocabulary"] = min(embedding["vocabulary"], max(WORDS, last + 1))
        if pool.get("id") is not None:  # what ends a text is often the last word of all
            pool["id"] = min(pool["id"], embedding["vocabulary"] - 1)
        if (embedding["position"] or {}).get("length") is not None:
            first = (embedding["padding"] or 0) + 1 if embedding["count"] == "unpadded" else 0
            embedding["position"]["length"] = min(embedding["position"]["length"], max(40, first + 10))
    return validate(_with_small_head(fields))


def _shrink_sides(config: Any, depth: int, head_size: int) -> Any:
    """Both sides of an encoder-decoder, of one width, with what stands for padding and starts a text among few tokens."""
    fields = config.model_dump()
    for token in ("start", "padding"):
        fields[token] = fields[token] if fields[token] is None else min(fields[token], WORDS - 1)
    for name in ("encoder", "decoder"):
        embedding = fields[name]["embedding"]
        if embedding.get("padding") is not None:
            embedding["padding"] = min(embedding["padding"], WORDS - 1)
    sides = {name: getattr(validate(fields), name) for name in ("encoder", "decoder")}
    small = {name: shrink(side, depth, head_size) for name, side in sides.items()}
    if small["encoder"].stack.width != small["decoder"].stack.width:
        heads = {name: min(side.stack.block.attention.heads, 4) for name, side in sides.items()}
        width = head_size * math.lcm(*heads.values())
        small = {name: shrink(side, depth, width // heads[name]) for name, side in sides.items()}
    return validate(fields | {name: each.model_dump() for name, each in small.items()})


def _shrink_stages(fields: dict[str, Any], depth: int, head_size: int, stages: int | None) -> Any:
    """Every stage, with twice the heads of the one before, and a grid that is whole windows in each for images as trained."""
    embedding, stack = fields["embedding"], fields["stack"]
    stack["stages"] = stack["stages"][:stages]
    number = len(stack["stages"])
    heads = 3 if stack["block"]["attention"]["heads"] % 3 == 0 else 2
    stack["width"] = heads * head_size
    stack["block"]["attention"]["heads"] = heads
    for count, stage in enumerate(stack["stages"]):
        stage["depth"] = 1 if stages else min(stage["depth"], max(depth, len(stack["pattern"] or [])))
        stage["heads"] = heads * 2**count
    for attention in _named(fields["stack"], "attention"):
        if attention.get("window") is not None:
            attention["window"] = [min(side, WINDOW) for side in attention["window"]]
        if attention.get("head_size") is not None:
            attention["head_size"] = head_size
    grid = [min(s // old, WINDOW * 2 ** (number - 1)) for s, old in zip(embedding["image_size"], embedding["patch_size"])]
    embedding["patch_size"] = [min(side, 4) for side in embedding["patch_size"]]
    embedding["image_size"] = [length * side for length, side in zip(grid, embedding["patch_size"])]
    known = ["stem", *(f"stage{count + 1}" for count in range(number))]
    if (fields["head"] or {}).get("features"):
        fields["head"]["features"] = [name for name in fields["head"]["features"] if name in known] or known[-1:]
    return validate(_with_small_head(fields))


def _with_small_head(fields: dict[str, Any]) -> dict[str, Any]:
    head = fields["head"]
    if head is not None and head.get("classes"):
        head["classes"] = min(head["classes"], 7)
        head["labels"] = head["labels"] and head["labels"][: head["classes"]]
    if head is not None and head.get("size"):
        head["size"] = min(head["size"], 24)
    return fields


def _named(fields: Any, name: str) -> list[dict[str, Any]]:
    """Every mapping that stands under this name, however deep."""
    found = []
    if isinstance(fields, dict):
        for key, value in fields.items():
            if key == name and isinstance(value, dict):
                found.append(value)
            found += _named(value, name)
    elif isinstance(fields, list):
        for value in fields:
            found += _named(value, name)
    return found
