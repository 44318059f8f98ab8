"""The registry's pages and the parts under zoo/ are the same set, both ways."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import Any

import pytest

import zoo
from zoo import registry
from zoo.config import Config

LINES = [(kind, name) for kind in registry.kinds() for name in registry.page(kind)]
FOLDER = {"run": "training"}
"""Where the parts of a page live, if not in the folder of that name."""


def modules() -> list[Any]:
    """Every module of zoo."""
    skipped = ("zoo.__main__", "zoo.cli")
    names = [module.name for module in pkgutil.walk_packages(zoo.__path__, "zoo.")]
    return [importlib.import_module(name) for name in names if not name.startswith(skipped)]


@pytest.mark.parametrize(("kind", "name"), LINES)
def test_a_line_resolves_to_a_part_of_its_name_in_its_folder(kind: str, name: str) -> None:
    module, _, attribute = registry.page(kind)[name].partition(":")
    part = registry.part(kind, name)
    assert (part.__module__, part.__qualname__) == (module, attribute)
    assert module.split(".")[:2] == ["zoo", FOLDER.get(kind, kind)]
    assert part.Config.model_fields["type"].default == name
    assert part.Config.kind == kind
    assert issubclass(part.Config, Config)


@pytest.mark.parametrize(("kind", "name"), LINES)
def test_a_part_says_in_one_line_what_it_is(kind: str, name: str) -> None:
    first = (registry.part(kind, name).__doc__ or "").strip().partition("\n")[0]
    assert 10 < len(first) <= 128


def test_every_part_stands_on_exactly_one_line() -> None:
    found = set()
    for module in modules():
        for _, cls in inspect.getmembers(module, inspect.isclass):
            config = vars(cls).get("Config")
            if cls.__module__ == module.__name__ and inspect.isclass(config) and "type" in getattr(config, "model_fields", {}):
                found.add(f"{cls.__module__}:{cls.__qualname__}")
    lines = [target for kind in registry.kinds() for target in registry.page(kind).values()]
    assert sorted(lines) == sorted(found)


def test_pages_are_sorted_and_flat() -> None:
    for kind in registry.kinds():
        page = registry.page(kind)
        assert all(isinstance(value, str) for value in page.values())
        assert list(page) == sorted(page)


def test_components_are_listed_with_their_kind() -> None:
    assert registry.list_components() == [
        f"{kind}/{name}" for kind in registry.kinds() for name in registry.list_components(kind)
    ]
    assert {f"{kind}/{name}" for kind, name in LINES} <= set(zoo.list_components())
    assert zoo.list_components("norm") == ["layer-norm", "rms-norm"]


def test_an_unknown_kind_or_name_is_named_with_the_nearest() -> None:
    for call in (
        registry.page,
        registry.list_components,
        lambda kind: registry.part(kind, "full"),
        lambda kind: registry.register(kind, "x"),
    ):
        with pytest.raises(zoo.errors.UnknownNameError, match="unknown kind of part 'atention'; did you mean 'attention'"):
            call("atention")
    with pytest.raises(zoo.errors.UnknownNameError, match="unknown norm 'layernorm'; did you mean 'layer-norm'"):
        registry.part("norm", "layernorm")


def test_resolving_twice_gives_the_same_class() -> None:
    assert registry.part("norm", "rms-norm") is registry.part("norm", "rms-norm")


def test_making_an_empty_slot_makes_nothing() -> None:
    assert registry.make(None, width=3) is None
