"""What the registry's parts are: their docstrings, their fields, and the presets that are made of them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from zoo import registry
from zoo.config import Config, Slot
from zoo.config.base import slot_of
from zoo.config.docs import field_docs
from zoo.config.resolve import resolve
from zoo.config.source import read_source
from zoo.presets import list_models, list_runs

_FACT = re.compile(r"(?<=[.)])\s+(?=(?:Papers?|Shapes|Cost|Source): )")
_RUNS = ("run", "data", "task")
"""Kinds of parts that runs are made of; all others make models."""


class Field(NamedTuple):
    """A field of a part's config."""

    name: str
    type: str
    """What may stand there, in words."""
    default: str
    """`needed` where there is none; behind it the type that a part has unless the config says another."""
    description: str
    shared: bool
    """Whether every part of the kind has it, so that an override of the type keeps it."""


class Description(NamedTuple):
    """What a part is."""

    kind: str
    name: str
    summary: str
    """The first line of its docstring."""
    about: str
    """The rest of its docstring, without what follows here."""
    papers: str
    """Authors, year and address of each paper; empty where there is none."""
    shapes: str
    cost: str
    fields: tuple[Field, ...]
    presets: tuple[str, ...]
    """The presets (of models; of runs, for parts of a run) that use it."""
    place: str
    """Where it is written: `module:Class`."""


def describe(kind: str, name: str) -> Description:
    """What a part is.

    Raises:
        UnknownNameError: there is no such kind, or no part of that name.
    """
    part = registry.part(kind, name)
    summary, _, rest = inspect.cleandoc(part.__doc__ or "").partition("\n")
    pieces = [" ".join(piece.split()) for piece in _FACT.split(f"{summary}\n{rest}")]
    facts = {word.rstrip("s"): text for word, _, text in (piece.partition(": ") for piece in pieces[1:])}
    return Description(
        kind=kind,
        name=name,
        summary=summary.strip(),
        about=pieces[0].removeprefix(" ".join(summary.split())).strip(),
        papers=(facts.get("Paper") or facts.get("Source", "")).rstrip("."),
        shapes=facts.get("Shape", "").rstrip("."),
        cost=facts.get("Cost", "").rstrip("."),
        fields=tuple(_fields(part.Config, kind)),
        presets=tuple(preset for preset, parts in _presets(kind in _RUNS).items() if (kind, name) in parts),
        place=f"{part.__module__}:{part.__qualname__}",
    )


def parts_of(config: Config) -> Iterator[tuple[str, str]]:
    """Kind and name of each part that a config names, itself included."""
    if config.kind and getattr(config, "type", None) is not None:
        yield config.kind, str(getattr(config, "type"))
    blocks = getattr(config, "blocks", None)
    inside = [getattr(config, name) for name in type(config).model_fields] + (blocks() if callable(blocks) else [])
    for value in inside:
        if isinstance(value, Config):
            yield from parts_of(value)


@cache
def _presets(runs: bool) -> dict[str, set[tuple[str, str]]]:
    """The parts of each preset."""
    if not runs:
        return {name: set(parts_of(resolve(name))) for name in list_models()}
    slot = Slot("run", default="train")  # the fields are not checked, for which Lightning would be imported
    return {name: _stated(read_source(name, "train", slot)) for name in list_runs()}


def _stated(fields: dict[str, Any]) -> set[tuple[str, str]]:
    defaults = {"data": None, "task": "classification"}
    named = {kind: Slot(kind).type_of(fields.get(kind, default)) for kind, default in defaults.items()}
    return {("run", str(fields.get("type", "train"))), *((kind, name) for kind, name in named.items() if name is not None)}


def _fields(config: type[Config], kind: str) -> Iterator[Field]:
    docs = field_docs(config)
    base: Any = next((cls for cls in config.__mro__[1:] if cls.__dict__.get("kind") == kind), None)
    shared = set(base.model_fields if base is not None else ())
    for name, info in config.model_fields.items():
        if name != "type":
            yield Field(name, _type(info), _default(info), docs.get(name, ""), name in shared)


def _default(info: Any) -> str:
    if info.is_required():
        slot = slot_of(info)
        return f"needed ({slot.default})" if slot is not None and slot.default else "needed"
    value = info.get_default(call_default_factory=True)
    if isinstance(value, Config):
        return str(getattr(value, "type", "its defaults"))
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(list(value) if isinstance(value, tuple) else value)


def _type(info: Any) -> str:
    slot = slot_of(info)
    if slot is not None:
        return f"{slot.kind}{' or none' if slot.optional else ''}"
    return _words(info.annotation)


def _words(annotation: Any) -> str:
    """A type as people say it: `whole number or none`."""
    names = {int: "whole number", float: "number", bool: "true or false", str: "word", type(None): "none", dict: "mapping"}
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _words(inner[0])
    if origin is Literal:
        return " or ".join(map(str, inner))
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_words(each) for each in inner))
    if origin in (list, tuple):
        return f"list of {_words(inner[0])}s" if origin is list else f"{len(inner)} {_words(inner[0])}s"
    return names.get(origin or annotation, getattr(annotation, "__name__", str(annotation)))
