"""The tensors of a folder under our names."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from zoo.checkpoint import rules
from zoo.checkpoint.family import Family
from zoo.checkpoint.locate import locate
from zoo.config.resolve import validate
from zoo.model.base import Model
from zoo.model.construct import on_meta


def read_as_ours(family: Family, ours: Model, folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder under our names, as far as our model has tensors of those names and shapes."""
    found = locate(folder)
    own = validate(found.fields, found.place)
    shapes = {name: tuple(parameter.shape) for name, parameter in on_meta(own).named_parameters()}
    names = family.plain_names(found.stored)
    table = family.table(own, shapes, found.stored)
    theirs = rules.read(table, lambda name: found.stored[names[name]].fetch(names[name]), shapes)
    mine = {name: tuple(parameter.shape) for name, parameter in ours.named_parameters()}
    return {name: tensor for name, tensor in theirs.items() if mine.get(name) == tuple(tensor.shape)}
