"""The tensors of a folder under our names."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from zoo.checkpoint import rules
from zoo.checkpoint.family import Family
from zoo.checkpoint.locate import locate
from zoo.model.base import Model


def read_as_ours(family: Family, ours: Model, folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder under our names, as far as our model has them."""
    stored = locate(folder).stored
    shapes = {name: tuple(parameter.shape) for name, parameter in ours.named_parameters()}
    names = family.plain_names(stored)
    table = [entry for entry in family.table(ours.config, shapes, stored) if all(name in names for name in entry.theirs)]
    return rules.read(table, lambda name: stored[names[name]].fetch(names[name]), shapes)
