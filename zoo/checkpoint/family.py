"""What a reference family is: how another library describes and spells a kind of model."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from typing import Any, ClassVar

from zoo.checkpoint.rules import Rule, expand
from zoo.errors import ConfigError, WeightsError


class Family(ABC):
    """One family of models of another library: its config and its tensors, both ways."""

    assembly: ClassVar[str] = "transformer"
    """Which of our models it has: a name of `registry/model.yaml`."""
    library: ClassVar[str]
    """The library that opens such folders: "transformers", "timm" or "open_clip"."""
    files: ClassVar[tuple[str, str]] = ("config.json", "model.safetensors")
    """What it calls the config and the tensors in a folder."""
    prefix: ClassVar[str] = ""
    """What stands in front of the body's names where the file holds a head as well."""
    ignored: ClassVar[Mapping[str, str]] = {}
    """Tensors on disk that are known and dropped: {pattern with *: reason}."""
    taps: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Modules of the reference and of ours that give the same values: (theirs, ours), with {n}."""

    def tapped(self, config: Any) -> tuple[tuple[str, str], ...]:
        """`taps`, of a model of this config: where layers are not numbered alike, each stands for itself."""
        return self.taps

    @abstractmethod
    def recognises(self, values: Mapping[str, Any]) -> bool:
        """Whether a `config.json` with these values belongs to this family."""

    @abstractmethod
    def read_config(self, values: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
        """Our fields for their config; `names` are the tensors that lie beside it.

        Raises:
            ConfigError: a field that we do not support; the message names it.
        """

    def with_head(self, values: Mapping[str, Any], head: str | None, names: Collection[str]) -> dict[str, Any] | None:
        """Our fields for the same model with a head of another type, where a file may hold that one as well.

        None where the tensors of one head would be taken for those of another.
        """
        return None

    @abstractmethod
    def write_config(self, config: Any) -> dict[str, Any]:
        """Their config for ours.

        Raises:
            ConfigError: the family has no such model; the message names our field.
        """

    @abstractmethod
    def rules(self, config: Any, names: Collection[str] = ()) -> Iterable[Rule]:
        """Their names and ours, for everything that a model of this config may have.

        Where theirs have several spellings, the tensors on disk, `names`, tell which one it is.
        """

    def table(self, config: Any, ours: Iterable[str], names: Collection[str] = ()) -> list[Rule]:
        """The rules for a model with the tensors `ours`; `names` are those on disk, where some are read."""
        return expand(self.rules(config, names), config.stack.depth, ours)

    def plain_names(self, names: Iterable[str]) -> dict[str, str]:
        """The names on disk by the names the rules use: with the prefix, whether the file has it or not.

        Raises:
            WeightsError: two names on disk mean the same tensor.
        """
        return plain_names(names, self.prefix, self.heads)

    heads: ClassVar[tuple[str, ...]] = ()
    """Starts of names that never carry the prefix."""


def plain_names(names: Iterable[str], prefix: str, heads: tuple[str, ...]) -> dict[str, str]:
    """See `Family.plain_names`."""
    plain: dict[str, str] = {}
    for name in names:
        body = name if name.startswith((prefix, *heads)) else prefix + name
        if body in plain:
            raise WeightsError(f"two sources for one tensor: {plain[body]} and {name}")
        plain[body] = name
    return plain


class Wanted:
    """Checks, while a config of ours is written as theirs, that theirs can say it."""

    def __init__(self, family: str) -> None:
        self.family = family

    def expect(self, path: str, value: Any, *allowed: Any) -> None:
        """Raises unless `value`, found at `path` of our config, is one of `allowed`."""
        if value not in allowed:
            known = " or ".join("none" if each is None else repr(each) for each in allowed)
            got = getattr(value, "type", value)
            raise ConfigError(f"{path}: {self.family} has no model with {got!r} here, only {known}")

    def part(self, path: str, part: Any, *types: str | None) -> None:
        """Raises unless the part in a slot has one of these types."""
        self.expect(path, None if part is None else part.type, *types)

    def training_only(self, path: str, value: float, theirs: float = 0.0) -> None:
        """Warns of a value that only acts in training and that theirs cannot say: there it is `theirs`."""
        if value != theirs:
            warnings.warn(
                f"{path}: {self.family} cannot say it, so {value} becomes {theirs}; it only acts in training", stacklevel=3
            )

    def equal(self, path: str, value: Any, other: str, expected: Any) -> None:
        """Raises unless two places of our config agree."""
        if value != expected:
            raise ConfigError(f"{path}: {self.family} has no model where it differs from {other}")
