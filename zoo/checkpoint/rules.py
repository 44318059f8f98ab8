"""The reversible table between a checkpoint's tensor names and ours."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from zoo.errors import WeightsError

Shape = tuple[int, ...]


class Same:
    """One tensor, taken as it is."""

    def read(self, theirs: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        """Their tensors as ours, which have these shapes; views of them wherever possible."""
        return list(theirs)

    def write(self, ours: Sequence[Tensor]) -> list[Tensor]:
        """Our tensors as theirs."""
        return list(ours)

    def shapes(self, ours: Sequence[Shape]) -> list[Shape]:
        """The shapes of their tensors for those of ours."""
        return list(ours)


class Split(Same):
    """One tensor of theirs holds several of ours, one after another along the first dimension."""

    def read(self, theirs: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        return list(theirs[0].split([shape[0] for shape in shapes]))

    def write(self, ours: Sequence[Tensor]) -> list[Tensor]:
        return [torch.cat(list(ours))]

    def shapes(self, ours: Sequence[Shape]) -> list[Shape]:
        return [(sum(shape[0] for shape in ours), *ours[0][1:])]


class Grouped(Same):
    """One tensor of theirs holds several of ours group by group: of each group, so much of the first, of the second, ..."""

    def __init__(self, groups: int) -> None:
        self.groups = groups

    def read(self, theirs: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        parts = theirs[0].unflatten(0, (self.groups, -1)).split([shape[0] // self.groups for shape in shapes], dim=1)
        return [part.flatten(0, 1) for part in parts]

    def write(self, ours: Sequence[Tensor]) -> list[Tensor]:
        return [torch.cat([each.unflatten(0, (self.groups, -1)) for each in ours], dim=1).flatten(0, 1)]

    def shapes(self, ours: Sequence[Shape]) -> list[Shape]:
        return [(sum(shape[0] for shape in ours), *ours[0][1:])]


class Stacked(Same):
    """Theirs holds under a name each what is the first dimension of one tensor of ours, such as the experts of a layer."""

    def read(self, theirs: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        return [torch.stack(list(theirs))]

    def write(self, ours: Sequence[Tensor]) -> list[Tensor]:
        return list(ours[0].unbind())

    def shapes(self, ours: Sequence[Shape]) -> list[Shape]:
        return [ours[0][1:]] * ours[0][0]


class Transposed(Same):
    """Theirs are matrices of (inputs, outputs), ours of (outputs, inputs); `inner` is what lies between beside that."""

    def __init__(self, inner: Same | None = None) -> None:
        self.inner = inner or Same()

    def read(self, theirs: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        return [each.contiguous() for each in self.inner.read([each.t() for each in theirs], shapes)]

    def write(self, ours: Sequence[Tensor]) -> list[Tensor]:
        return [each.t() for each in self.inner.write(ours)]

    def shapes(self, ours: Sequence[Shape]) -> list[Shape]:
        return [shape[::-1] for shape in self.inner.shapes(ours)]


class Batched(Same):
    """Theirs has a leading dimension of one that ours has not."""

    def read(self, theirs: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        return [theirs[0][0]]

    def write(self, ours: Sequence[Tensor]) -> list[Tensor]:
        return [ours[0][None]]

    def shapes(self, ours: Sequence[Shape]) -> list[Shape]:
        return [(1, *ours[0])]


class Flat(Same):
    """Ours has leading dimensions of one that theirs, a vector, has not."""

    def read(self, theirs: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        return [theirs[0].reshape(shapes[0])]

    def write(self, ours: Sequence[Tensor]) -> list[Tensor]:
        return [ours[0].flatten()]

    def shapes(self, ours: Sequence[Shape]) -> list[Shape]:
        return [ours[0][-1:]]


class Scalar(Same):
    """Theirs is a number, ours a vector of one."""

    def read(self, theirs: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        return [theirs[0].reshape(1)]

    def write(self, ours: Sequence[Tensor]) -> list[Tensor]:
        return [ours[0].reshape(())]

    def shapes(self, ours: Sequence[Shape]) -> list[Shape]:
        return [()]


class Copied(Same):
    """Theirs holds one tensor of ours under several names; the first is read."""

    def read(self, theirs: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        return [theirs[0]]

    def write(self, ours: Sequence[Tensor]) -> list[Tensor]:
        return [ours[0]] * 2

    def shapes(self, ours: Sequence[Shape]) -> list[Shape]:
        return [ours[0]] * 2


@dataclass(frozen=True)
class Rule:
    """Names on disk, our names, and what lies between; `{n}` stands for a layer's number."""

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    operation: Same = field(default_factory=Same)

    def at(self, layer: int) -> Rule:
        """The rule for one layer."""
        number = str(layer)
        theirs, ours = (tuple(name.replace("{n}", number) for name in names) for names in (self.theirs, self.ours))
        return Rule(theirs, ours, self.operation)


def rule(theirs: str, *ours: str, operation: Same | None = None) -> Rule:
    """`theirs` to `ours`; several of ours share one tensor of theirs unless `operation` says otherwise."""
    return Rule((theirs,), ours, operation or (Split() if len(ours) > 1 else Same()))


def module_rules(theirs: str, ours: str) -> list[Rule]:
    """Weight and bias of a module, under equal names."""
    return [rule(f"{theirs}.{name}", f"{ours}.{name}") for name in ("weight", "bias")]


def expand(rules: Iterable[Rule], depth: int, ours: Iterable[str]) -> list[Rule]:
    """The table for a model with these tensors: layers numbered, rules for what it lacks left out.

    Raises:
        WeightsError: two rules meet at one name, or a rule covers only some of its tensors.
    """
    names = set(ours)
    table: list[Rule] = []
    for each in rules:
        numbered = [each.at(layer) for layer in range(depth)] if any("{n}" in name for name in each.ours) else [each]
        table += [entry for entry in numbered if names.intersection(entry.ours)]
    for side in ("theirs", "ours"):
        seen = [name for entry in table for name in getattr(entry, side)]
        twice = sorted({name for name in seen if seen.count(name) > 1}) if len(set(seen)) < len(seen) else []
        if twice:
            raise WeightsError(f"two rules for one tensor: {', '.join(twice)}")
    for entry in table:
        if not names.issuperset(entry.ours):
            lacking = sorted(set(entry.ours) - names)
            raise WeightsError(f"{entry.theirs[0]} holds {', '.join(entry.ours)}, but this model has no {', '.join(lacking)}")
    return table


def read(table: Iterable[Rule], fetch: Callable[[str], Tensor], shapes: Mapping[str, Shape]) -> dict[str, Tensor]:
    """Our tensors by name, made from theirs."""
    ours: dict[str, Tensor] = {}
    for entry in table:
        made = entry.operation.read([fetch(name) for name in entry.theirs], [shapes[name] for name in entry.ours])
        ours.update(zip(entry.ours, made))
    return ours


def write(table: Iterable[Rule], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors by name, made from ours."""
    theirs: dict[str, Tensor] = {}
    for entry in table:
        made = entry.operation.write([ours[name] for name in entry.ours])
        for name, tensor in zip(entry.theirs, made):
            shared = any(tensor is other for other in theirs.values())
            theirs[name] = tensor.clone() if shared else tensor.contiguous()
    return theirs
