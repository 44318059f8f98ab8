"""Which field of the config is most likely at fault where a module diverges."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

import torch
from torch import nn

from zoo import kernel
from zoo.config import Config
from zoo.config.base import slot_of
from zoo.errors import ZooError
from zoo.layout import Layout
from zoo.model.transformer import head_context
from zoo.registry import make
from zoo.verification.compare import Seen, error, fed
from zoo.verification.report import TOLERANCE

EPS = (1e-12, 1e-8, 1e-6, 1e-5, 1e-3)
THETA = (1e4, 5e5, 1e6)


def suspects(model: Any, name: str, seen: Seen, layout: Layout, inputs: Mapping[str, Any], limit: int = 3) -> list[str]:
    """Tries other values of each field of the diverging part, and names those with which it would agree.

    Where none helps, the fields themselves are named.
    """
    config, path, context = _config_at(model, name)
    if config is None:
        return []
    module = model.get_submodule(name)
    try:
        before = error(fed(module, name, seen, layout, inputs), seen.output)
    except (ZooError, RuntimeError):  # it does not take these inputs at all
        before = float("inf")
    found: list[tuple[float, str]] = []
    for field, value, changed in _changes(config):
        other = _rebuilt(changed, module, context)
        if other is None:
            continue
        try:
            after = error(fed(other, name, seen, layout, inputs), seen.output)
        except (ZooError, RuntimeError):  # it does not take these inputs
            continue
        if after < before / 10:
            verdict = "would agree" if after <= TOLERANCE else f"would be nearer ({after:.0e} instead of {before:.0e})"
            old = config
            for step in field.split("."):
                old = getattr(old, step)
            found.append((after, f"{path}.{field} is {old!r}; with {value!r} it {verdict}"))
    if found:
        return [text for _, text in sorted(found)[:limit]]
    fields = [field for field in type(config).model_fields if field != "type"]
    return [f"{path} ({getattr(config, 'type', '')}), or how its weights are read; its fields are {', '.join(fields)}"]


def _config_at(model: Any, name: str) -> tuple[Any, str, dict[str, Any]]:
    """The config of a module, its path, and what the part is built with beside it."""
    if model.stack is None:  # of two towers
        tower, _, inside = name.partition(".")
        found, path, context = _config_at(getattr(model, tower), inside)
        borrows = inside == "embedding" and getattr(getattr(model, tower).embedding, "table", model) is None
        return found, f"{tower}.{path}", {**context, "own_table": False} if borrows else context
    config, width = model.config, {"width": model.stack.width}
    if name == "head" and config.head is not None:
        return config.head, name, head_context(config, getattr(model.stack, "output_width", model.stack.width))
    if name == "embedding":
        return config.embedding, name, width
    if name == "head.norm":
        return config.head.norm, name, width
    if name == "stack.final_norm":
        return config.stack.final_norm, name, {"width": getattr(model.stack, "output_width", model.stack.width)}
    match = re.fullmatch(r"stack\.layers\.(\d+)(?:\.(\w+))?", name)
    if match is None:
        return None, name, {}
    block = config.stack.blocks()[int(match[1])]
    if hasattr(config.stack, "stage_of"):
        width = {"width": config.stack.width_of(config.stack.stage_of()[int(match[1])])}
    part = "norm" if (match[2] or "").endswith("_norm") else match[2] or ""
    return (getattr(block, part), f"stack.block.{part}", width) if part else (block, "stack.block", width)


def _changes(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Each field with another value, and the config with it."""
    for name, field in type(config).model_fields.items():
        old = getattr(config, name)
        if slot_of(field) is not None and isinstance(old, Config):
            for inner, value, changed in _changes(old):
                yield f"{name}.{inner}", value, config.model_copy(update={name: changed})
            continue
        for value in _others(name, field.annotation, old):
            try:
                yield name, value, type(config).model_validate({**config.model_dump(), name: value})
            except (ZooError, ValueError):
                continue


def _others(name: str, annotation: Any, old: Any) -> list[Any]:
    if name == "type":
        return []
    if name == "eps":
        return [value for value in EPS if value != old]
    if name == "activation":
        return [value for value in kernel.ACTIVATIONS if value != old]
    if name == "heads":
        return [value for value in (1, 2, 3, 4, 6, 8, 12, 16) if value != old]
    if name == "scale":
        return [value for value in (None, 1.0) if value != old]
    if name == "window" and isinstance(old, int):
        return [value for value in (old - 1, old + 1) if value >= 0]
    if name == "global_tokens":
        return [value for value in (0, 1) if value != old]
    if name == "theta":
        return [value for value in THETA if value != old]
    if isinstance(old, bool):
        return [not old]
    if get_origin(annotation) is Literal:
        return [value for value in get_args(annotation) if value != old]
    return []


def _rebuilt(config: Any, module: nn.Module, context: dict[str, Any]) -> nn.Module | None:
    """The part of another config with the same weights; None if they do not fit it."""
    try:
        with torch.device("meta"):
            other: nn.Module = make(config, **context)
        other.load_state_dict(copy.copy(module.state_dict()), strict=True, assign=True)
    except (ZooError, RuntimeError, ZeroDivisionError, ValueError):
        return None
    return other.eval()
