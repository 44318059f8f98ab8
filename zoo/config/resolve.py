"""From whatever names a config to the validated, whole config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from zoo.config.base import Config, Slot
from zoo.config.merge import merge, unflatten
from zoo.config.messages import config_error
from zoo.config.source import parent_of, read_source
from zoo.errors import ConfigError

MODEL = Slot("model", default="transformer")


def resolve(source: Any, overrides: Mapping[str, Any] | None = None) -> Config:
    """The config of a model.

    Args:
        source: a preset's name, the path of a YAML file, a mapping of fields, or a config.
        overrides: fields to change, nested or with dotted names: `{"head.classes": 10}`.

    Raises:
        UnknownNameError: no preset has this name.
        ConfigError: the fields do not describe a model; the message names each place.
    """
    fields, place = _fields(source)
    return validate(merge_overrides(fields, overrides), place)


def resolve_unchanged(source: Any) -> Config | None:
    """What `source` changes: the config that a YAML file extends; for a preset or a config, itself.

    Weights that fit this config fit `source` too, but for the changes that it asks for.
    """
    if isinstance(source, (str, Path)) and str(source).endswith((".yaml", ".yml")):
        parent = parent_of(source, "models", MODEL)
        return resolve(source) if parent is None else validate(parent, str(source))
    return resolve(source)


def merge_overrides(fields: Mapping[str, Any], overrides: Mapping[str, Any] | None) -> dict[str, Any]:
    """`overrides` (nested or dotted) laid over the fields of a model."""
    if overrides is not None and not isinstance(overrides, Mapping):
        raise ConfigError(f"overrides: expected a mapping such as {{'head.classes': 10}}, got {overrides!r}")
    try:
        merged: dict[str, Any] = merge(fields, unflatten(overrides or {}), MODEL)
    except RecursionError:
        raise ConfigError("overrides: nested too deeply") from None
    return merged


def validate(fields: Mapping[str, Any], place: str = "") -> Config:
    """The config that `fields` describe."""
    try:
        config = MODEL.validate(fields)
    except ValidationError as error:
        raise config_error(error, place) from None
    except RecursionError:
        raise ConfigError(f"{place or 'the config'}: nested too deeply") from None
    except ValueError as error:
        raise ConfigError(f"{place}: {error}" if place else str(error)) from None
    assert config is not None
    return config


def _fields(source: Any) -> tuple[dict[str, Any], str]:
    if isinstance(source, Config):
        return source.model_dump(), ""
    if isinstance(source, Mapping):
        return {str(name): value for name, value in source.items()}, ""
    if isinstance(source, (str, Path)):
        return read_source(source, "models", MODEL), str(source)
    raise ConfigError(f"expected the name of a preset, a YAML file, a mapping or a config, got {source!r:.60}")
