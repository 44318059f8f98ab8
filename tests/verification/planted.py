"""Planting a mistake in the model that is verified."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest

import zoo
import zoo.verification.run as run
from zoo.verification.shrink import shrink


def plant(monkeypatch: pytest.MonkeyPatch, mutation: Callable[[Any], object], *, export: bool = False) -> None:
    """From now on `mutation` changes each model that `zoo.verify` reads.

    Args:
        export: whether such a model, broken on purpose, is exported back too.
    """
    load = run.load_model

    def mutated(*arguments: Any) -> Any:
        model = load(*arguments)
        mutation(model)
        return model

    monkeypatch.setattr(run, "load_model", mutated)
    if not export:
        monkeypatch.setattr(run, "_export", lambda *arguments: None)


def one_in_four(cases: Iterable[Any]) -> list[Any]:
    """The cases, of which `make test` runs every fourth and `make test-all` all."""
    return [pytest.param(*case, marks=pytest.mark.slow) if place % 4 else case for place, case in enumerate(cases)]


def one_of_each(names: list[str]) -> list[Any]:
    """The presets; of those that are one model when they are tiny, but for what is dropped, `make test` takes the first."""
    kinds: list[Any] = []
    found: list[Any] = []
    for name in names:
        tiny = shrink(zoo.get_config(name)).model_dump()
        tiny.get("stack", {}).pop("drop_path", None)
        found.append(pytest.param(name, marks=pytest.mark.slow) if tiny in kinds else name)
        kinds.append(tiny)
    return found


def verified(monkeypatch: pytest.MonkeyPatch, mutation: Callable[[Any], object], preset: str, overrides: Any) -> Any:
    """What `zoo.verify` says of a tiny decoder with this mistake planted: of its forward pass, against transformers."""
    plant(monkeypatch, mutation)
    config = zoo.get_config(preset, overrides)
    return zoo.verify(config, reference="transformers", tiny=True, training=False, gradients=False)
