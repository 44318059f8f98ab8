"""The public functions: everything in zoo, its command line and its tests starts here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.config.resolve import resolve

if TYPE_CHECKING:
    import torch

    from zoo.config import Config
    from zoo.model.base import Model
    from zoo.training.session import TrainingResult
    from zoo.verification.report import Report


def get_config(model: Any, overrides: Mapping[str, Any] | None = None) -> Config:
    """The whole, checked config of a preset's name, a YAML file, a mapping or a config.

    Args:
        overrides: fields to change, nested or with dotted names: `{"head.classes": 10}`.

    Raises:
        UnknownNameError: no preset has this name.
        ConfigError: the fields do not describe a model.
    """
    return resolve(model, overrides)


def build(
    model: Any,
    overrides: Mapping[str, Any] | None = None,
    *,
    weights: str | Path | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
) -> Model:
    """A new model, in train mode.

    Args:
        model: the name of a preset, a YAML file, a mapping of fields, or a config.
        overrides: fields to change, nested or with dotted names: `{"head.classes": 10}`.
        weights: whose weights to put in, as `load` takes them; what the overrides (or a YAML file
            over what it extends) changed is resized or drawn afresh, and `model.load_report` says so.
        device: where the model lives; "meta" gives shapes only.
        dtype: type of the weights, a torch dtype or its name (default: torch's default).

    Raises:
        UnknownNameError, ConfigError: see `get_config`.
        WeightsError: the weights cannot be read or do not fit.
    """
    from zoo.checkpoint.load import put_weights
    from zoo.model.construct import fresh

    if weights is None:
        return fresh(resolve(model, overrides), device, dtype)
    return put_weights(model, overrides, weights, device, dtype)


def load(
    source: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
) -> Model:
    """A model with its weights, in eval mode.

    Args:
        source: a folder that zoo, transformers or timm saved, a Lightning checkpoint, the name of
            pretrained weights (`zoo list --pretrained`), or a Hub id.
        overrides: fields of its config to change; tensors that thereby change are resized or drawn
            afresh, and `model.load_report` says so.
        device: where the model lives.
        dtype: type of the weights (default: the type they are stored in).

    Raises:
        WeightsError: the weights cannot be read or do not fit; the message lists every tensor.
        ConfigError: the config found there is not one we support.
    """
    from zoo.checkpoint.load import load_model

    return load_model(source, overrides, device, dtype).eval()


def save(model: Model, folder: str | Path) -> Path:
    """Writes `config.json` (the whole config) and `model.safetensors` into a folder, each in one step.

    Raises:
        WeightsError: the folder cannot be written.
    """
    from zoo.checkpoint.save import save_model

    return save_model(model, Path(folder))


def export(model: Model, folder: str | Path, format: str = "transformers") -> Path:
    """Writes a folder that another library opens: `format` is "transformers" or "timm".

    Raises:
        ConfigError: the library has no such model; the message names the field.
    """
    from zoo.checkpoint.save import export_model

    return export_model(model, Path(folder), format)


def verify(
    target: Any,
    overrides: Mapping[str, Any] | None = None,
    *,
    weights: str | Path | None = None,
    reference: Any = None,
    **options: Any,
) -> Report:
    """Compares our model with the reference implementation, layer by layer.

    Args:
        target: the name of a preset, a YAML file, a config, or anything that `load` takes.
        overrides: fields to change; the reference stays that of the unchanged target.
        weights: real weights to compare on, as `load` takes them (default: every parameter redrawn).
        reference: "transformers" or "timm" (default: each that has such a model).
        options: see `zoo.verification.run.verify`.

    Returns:
        A report with `passed`, `first_divergence` and `layers`; print it.
    """
    from zoo.verification.run import verify as run

    return run(target, overrides, weights=weights, reference=reference, **options)


def train(run: Any, overrides: Mapping[str, Any] | None = None, **options: Any) -> TrainingResult:
    """Trains by a run config: the name of a shipped one, a YAML file or a mapping.

    Args:
        overrides: fields of the run to change: `{"trainer.max_epochs": 3, "model.stack.depth": 2}`.
        options: `overwrite` and `resume`, for a folder that holds a run already; `progress`.

    Returns:
        The run's folder and its metrics.

    Raises:
        UnknownNameError, ConfigError: the run does not exist or does not describe one.
        MissingExtraError: the extra `train` is not installed.
    """
    from zoo.training.run import train as start

    return start(run, overrides, **options)


__all__ = ["build", "export", "get_config", "load", "save", "train", "verify"]
