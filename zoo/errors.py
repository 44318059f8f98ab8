"""The errors that zoo raises for a user's mistake, and the words they share.

Each message names the place, the value, what was expected and the nearest valid choice.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ZooError(Exception):
    """Base of every error that a user of zoo can cause."""


class UnknownNameError(ZooError, ValueError):
    """A name that no preset, part, family or file answers to."""


class ConfigError(ZooError, ValueError):
    """A config that does not describe a model or a run."""


class WeightsError(ZooError, ValueError):
    """Weights that cannot be read, or do not fit the model they are meant for."""


class InputError(ZooError, ValueError):
    """A call of a model with inputs or arguments that it cannot honour."""


class DataError(ZooError, ValueError):
    """Training or evaluation data that cannot be used."""


class MissingExtraError(ZooError, ImportError):
    """A feature whose optional packages are not installed."""


def did_you_mean(name: object, choices: Iterable[object]) -> str:
    """`"; did you mean 'window'?"` for the choice nearest to `name`, or an empty string."""
    near = difflib.get_close_matches(str(name), [str(choice) for choice in choices], n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def one_of(choices: Iterable[object], limit: int = 12) -> str:
    """`"one of a, b, c"`, cut after `limit` names."""
    names = [str(choice) for choice in choices]
    shown = ", ".join(names[:limit]) + (f", ... ({len(names)} in all)" if len(names) > limit else "")
    return f"one of {shown}" if names else "(there are none)"


def unknown(what: str, name: object, choices: Iterable[object]) -> UnknownNameError:
    """The error for `name`, which should have been one of `choices`."""
    choices = list(choices)
    hint = did_you_mean(name, choices) or f"; expected {one_of(choices)}"
    return UnknownNameError(f"unknown {what} {name!r}{hint}")
