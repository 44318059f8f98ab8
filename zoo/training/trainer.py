"""The fields of `lightning.Trainer`, checked against its own signature before anything is built."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from zoo.config import Problem
from zoo.errors import ConfigError, did_you_mean
from zoo.extras import require

OURS = {
    "callbacks": "callbacks are objects, which a config cannot hold; use ZooModule in a lightning.Trainer of your own",
    "logger": "a run writes metrics.csv and a TensorBoard log into its folder",
    "default_root_dir": "set `folder` of the run instead",
    "enable_checkpointing": "a run always writes last.ckpt",
}
"""Arguments of the Trainer that a run sets itself, and why."""


def trainer_problems(fields: Mapping[str, Any]) -> Iterator[Problem]:
    """What `lightning.Trainer` would not take, each with the name of its field."""
    trainer = require("lightning", "train", "training").Trainer
    names = [name for name in inspect.signature(trainer.__init__).parameters if name != "self"]
    hints = typing.get_type_hints(trainer.__init__)
    for name, value in fields.items():
        if name in OURS:
            yield (name,), f"this is set by the run itself: {OURS[name]}"
        elif name not in names:
            hint = did_you_mean(name, names) or "; see the documentation of lightning.Trainer"
            yield (name,), f"unknown field of lightning.Trainer{hint}"
        else:
            yield from ((((name,), message)) for message in _misfits(value, hints.get(name, Any)))


def _misfits(value: Any, hint: Any) -> Iterator[str]:
    try:
        TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True, strict=True)).validate_python(value)
    except ValidationError as error:
        expected = [str(item["msg"]).removeprefix("Input should be ") for item in error.errors()]
        yield f"expected {' or '.join(dict.fromkeys(expected[:3]))}, got {value!r}"


def make_trainer(fields: Mapping[str, Any], **ours: Any) -> Any:
    """A `lightning.Trainer`.

    Raises:
        ConfigError: Lightning refuses the fields, or this machine lacks what they ask for.
    """
    lightning = require("lightning", "train", "training")
    refused = require("lightning.pytorch.utilities.exceptions", "train", "training").MisconfigurationException
    try:
        return lightning.Trainer(**{**ours, **fields})
    except (refused, ValueError, TypeError) as error:
        raise ConfigError(f"trainer: {' '.join(str(error).split())}") from None
