"""What one model has that another has not: in its config, and in what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from zoo.config.merge import differing_fields
from zoo.config.resolve import resolve
from zoo.inspect.cost import Part, cost


class Field(NamedTuple):
    """A field of the configs that differs."""

    path: str
    """Where it stands, such as `stack.block.feedforward`."""
    ours: Any
    """Its value in the model; a part of another type is given by its name."""
    theirs: Any
    """Its value in the model that it is compared with."""


class Figure(NamedTuple):
    """What both models cost in one respect."""

    name: str
    """`parameters`, `flops` or `memory`, as in `zoo.inspect.cost.Part`."""
    ours: int
    theirs: int

    @property
    def ratio(self) -> float:
        """How many times as much ours costs."""
        return self.ours / self.theirs if self.theirs else float("inf") if self.ours else 1.0


class Comparison(NamedTuple):
    """Two models side by side."""

    fields: tuple[Field, ...]
    """What differs in their configs, in the order of the fields."""
    figures: tuple[Figure, ...]
    """What they cost."""


def compare(
    model: Any, other: Any, overrides: Mapping[str, Any] | None = None, *, batch: int = 1, tokens: int | None = None
) -> Comparison:
    """Compares a model with another one, without memory for either.

    Args:
        model, other: names of presets, YAML files, mappings of fields or configs.
        overrides: changes of `model`.
        batch, tokens: for how many examples FLOPs and memory are counted, and texts of which length.

    Raises:
        UnknownNameError, ConfigError: one of them does not describe a model.
    """
    ours, theirs = resolve(model, overrides), resolve(other)
    fields = tuple(Field(path, here, there) for path, there, here in differing_fields(theirs, ours))
    mine, others = (cost(config, batch=batch, tokens=tokens) for config in (ours, theirs))
    return Comparison(fields, tuple(_figures(mine, others)))


def _figures(ours: Part, theirs: Part) -> list[Figure]:
    return [Figure(name, getattr(ours, name), getattr(theirs, name)) for name in ("parameters", "flops", "memory")]
