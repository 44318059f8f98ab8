"""What a name means: `registry/<kind>.yaml` has one line `name: module:Class` for each part.

The registry is data, so it has no import order: a part's module is imported when its name is
used. A user's own part joins by `@zoo.register(kind, name)`, or as an installed package's entry
point in the group `zoo.<kind>`. This module imports no torch.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points
from typing import Any, TypeVar

from zoo.errors import UnknownNameError, ZooError, unknown
from zoo.resources import folder

Part = TypeVar("Part", bound=type)

_registered: dict[tuple[str, str], type] = {}
_NAME = re.compile(r"[a-z0-9]+([-.][a-z0-9]+)*")


@cache
def kinds() -> tuple[str, ...]:
    """The kinds of parts: one for each page of the registry."""
    return tuple(sorted(page.stem for page in folder("registry").glob("*.yaml")))


@cache
def page(kind: str) -> dict[str, str]:
    """The page of one kind: `{name: "module:Class"}`.

    Raises:
        UnknownNameError: no such kind.
    """
    if kind not in kinds():
        raise unknown("kind of part", kind, kinds())
    from zoo.config.source import read_yaml

    return dict(read_yaml(folder("registry") / f"{kind}.yaml"))


def list_components(kind: str | None = None) -> list[str]:
    """The names of one kind of part, or of all as `kind/name`; the user's own are included."""
    if kind is None:
        return [f"{kind}/{name}" for kind in kinds() for name in list_components(kind)]
    own = [name for (their_kind, name) in _registered if their_kind == kind]
    installed = [point.name for point in entry_points(group=f"zoo.{kind}")]
    return sorted({*page(kind), *own, *installed})


def part(kind: str, name: str) -> Any:
    """The class of the part `name`.

    Raises:
        UnknownNameError: no part of that kind has this name.
    """
    if not isinstance(name, str):  # a config may hold anything here
        raise unknown(kind, name, list_components(kind))
    if (kind, name) in _registered:
        return _registered[kind, name]
    if name in page(kind):
        return _resolve(kind, name, page(kind)[name])
    points = list(entry_points(group=f"zoo.{kind}", name=str(name)))
    if len(points) > 1:
        raise ZooError(f"two installed packages offer a {kind} called {name!r}: {', '.join(point.value for point in points)}")
    if points:
        try:
            offered = points[0].load()
        except (ImportError, AttributeError) as error:
            raise ZooError(f"{kind} {name!r}: {points[0].value} of an installed package cannot be imported: {error}") from error
        return _checked(kind, name, offered)
    raise unknown(kind, name, list_components(kind))


def make(config: Any, **context: Any) -> Any:
    """The part that a slot's config describes, built with the `context` it needs; None for an empty slot."""
    return None if config is None else part(config.kind, config.type)(config, **context)


def register(kind: str, name: str) -> Callable[[Part], Part]:
    """Decorator that makes a class of the user's a part: `@zoo.register("attention", "mine")`.

    The class needs a nested `Config` whose field `type` is `Literal["mine"]`. After that, configs
    name it like any part of ours.

    Raises:
        ZooError: the name is taken, or the class is not a part.
    """
    if kind not in kinds():
        raise unknown("kind of part", kind, kinds())
    if not _NAME.fullmatch(name):
        raise ZooError(f"{name!r} cannot name a {kind}: use lower-case letters, digits and hyphens")

    def add(cls: Part) -> Part:
        known = _registered.get((kind, name))
        again = known is not None and (known.__module__, known.__qualname__) == (cls.__module__, cls.__qualname__)
        if name in list_components(kind) and not again:
            raise ZooError(f"a {kind} called {name!r} exists already; choose another name")
        _registered[kind, name] = _checked(kind, name, cls)
        return cls

    return add


@cache
def _resolve(kind: str, name: str, target: str) -> type:
    module, _, attribute = target.partition(":")
    return _checked(kind, name, getattr(importlib.import_module(module), attribute))


def _checked(kind: str, name: str, cls: type) -> type:
    config: Any = getattr(cls, "Config", None)
    field = getattr(config, "model_fields", {}).get("type")
    if field is None or field.default != name or config.kind != kind:
        needed = f'it needs a nested Config of that kind with `type: Literal["{name}"] = "{name}"`'
        raise ZooError(f"{cls.__name__} is no {kind} part: {needed}")
    return cls


__all__ = ["UnknownNameError", "kinds", "list_components", "make", "page", "part", "register"]
