"""A model with all the parts of a large one, but few layers and small sizes."""

from __future__ import annotations

from typing import Any

from zoo.config.resolve import validate


def shrink(config: Any, depth: int = 2, head_size: int = 8) -> Any:
    """The config with little of everything: same parts, same fields, small numbers.

    The number of layers is at least that of the stack's pattern; heads keep their number up to four, and their size where
    their scores are scaled by a number of their own. Windows and trained lengths end within the texts that are compared.
    """
    fields = config.model_dump()
    embedding, stack = fields["embedding"], fields["stack"]
    stack["depth"] = min(stack["depth"], max(depth, len(stack["pattern"] or [])))
    width, before = stack["width"], stack["block"]["attention"]
    heads = min(before["heads"], 4)
    if any(attention.get("scale") is not None for attention in _named(fields, "attention")):
        head_size = before.get("head_size") or width // before["heads"]
    stack["width"] = heads * head_size
    groups = {before["heads"]: heads, 1: 1}.get(before.get("kv_heads"), max(heads // 2, 1))
    small = {"heads": heads, "head_size": head_size, "kv_heads": groups}
    for attention in _named(fields, "attention"):  # those of a pattern state only what differs
        small["window"] = min(attention.get("window") or 0, 5)
        attention.update({name: value for name, value in small.items() if attention.get(name) is not None})
    for position in _named(fields, "position"):
        if position.get("type") == "rotary" and position.get("length") is not None:
            position["length"] = min(position["length"], 20)
            if (position.get("scaling") or {}).get("type") == "dynamic":
                position["scaling"]["length"] = position["length"]
    for feedforward in _named(fields, "feedforward"):
        if feedforward.get("hidden") is not None:
            feedforward["hidden"] = max(8, feedforward["hidden"] * stack["width"] // width)
    if embedding["type"] == "patch":
        patch = tuple(min(side, 4) for side in embedding["patch_size"])
        embedding["image_size"] = tuple(
            min(size // old, 5) * new for size, old, new in zip(embedding["image_size"], embedding["patch_size"], patch)
        )
        embedding["patch_size"] = patch
    if embedding["type"] == "tokens":
        pool = (fields["head"] or {}).get("pool") or {}
        last = max(embedding["padding"] or 0, pool.get("padding") or 0)
        embedding["vocabulary"] = min(embedding["vocabulary"], max(61, last + 1))
        if (embedding["position"] or {}).get("length") is not None:
            first = (embedding["padding"] or 0) + 1 if embedding["count"] == "unpadded" else 0
            embedding["position"]["length"] = min(embedding["position"]["length"], max(40, first + 10))
    head = fields["head"]
    if head is not None and head.get("classes"):
        head["classes"] = min(head["classes"], 7)
        head["labels"] = head["labels"] and head["labels"][: head["classes"]]
    if head is not None and head.get("size"):
        head["size"] = min(head["size"], 24)
    return validate(fields)


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
