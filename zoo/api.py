"""The public functions: everything in zoo, its command line and its tests starts here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from zoo.config.resolve import resolve

if TYPE_CHECKING:
    import torch

    from zoo.config import Config
    from zoo.inspect.attention import Attended
    from zoo.inspect.cost import Part
    from zoo.model.base import Model
    from zoo.planning.plan import Plan
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
    """Writes a folder that another library opens: `format` is "transformers", "timm" or "open_clip".

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
        reference: "transformers", "timm" or "open_clip" (default: each that has such a model).
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


def hook_points(model: torch.nn.Module, patterns: str | Iterable[str] = "**") -> list[str]:
    """The places in a model where `capture` can look and `intervene` can change something.

    A name is the path of a module, the same in every family: `embedding`, `stack.layers.3` (a block),
    `stack.layers.3.attention`, `stack.layers.3.attention.query`, `stack.layers.3.attention.pattern` (the attention
    weights (batch, heads, tokens, keys)), `stack.layers.3.feedforward`, `head`, ...

    Args:
        model: a model, or whatever wraps one: a compiled model, a `ZooModule`, a `DistributedDataParallel`.
        patterns: only those that match one of these: `*`, `?` and `[...]` stand for characters within one step of a
            path (`stack.layers.*` are the blocks), `**` for any number of steps (`**.pattern`).

    Raises:
        UnknownNameError: a pattern matches nothing; the message gives the nearest name.
    """
    from zoo.inspect.hooks import hook_points as find

    return find(model, patterns)


def capture(
    model: torch.nn.Module,
    patterns: str | Iterable[str],
    *,
    calls: Literal["last", "all"] = "last",
    detach: bool = False,
) -> AbstractContextManager[dict[str, Any]]:
    """Within this context, the tensors at the chosen hook points are kept by name.

    >>> with zoo.capture(model, "stack.layers.*.attention.pattern") as seen:
    ...     model(images)
    >>> seen["stack.layers.0.attention.pattern"].shape

    Of an output with several values it is the first tensor: the tokens of a block, the output of an attention. What
    interventions change is captured as changed. While the context is open compiled models run without their compiled
    code, so the values are those of the plain model; nothing is compiled anew.

    Args:
        model, patterns: see `hook_points`; several patterns as a list.
        calls: "last" keeps the tensor of the last call of each module, "all" a list of all of them (a model that
            runs twice, or a module that runs twice within it, such as the dropout of a block).
        detach: cut the tensors off the graph. By default gradients flow through them, and `retain_grad()` works;
            then they also hold the graph, if there is one.

    Raises:
        UnknownNameError: a pattern matches nothing; the message gives the nearest name.
    """
    from zoo.inspect.hooks import capture as start

    return start(model, patterns, calls=calls, detach=detach)


def intervene(
    model: torch.nn.Module, changes: Mapping[str, Callable[[torch.Tensor], torch.Tensor]]
) -> AbstractContextManager[None]:
    """Within this context, the tensors at the chosen hook points are replaced by what functions make of them.

    >>> with zoo.intervene(model, {"stack.layers.3.attention.pattern": lambda pattern: pattern.roll(1, dims=1)}):
    ...     model(images)

    Functions of one place apply in their order; of nested contexts the inner one comes first.

    Args:
        model: see `hook_points`.
        changes: a function for each name or pattern; it is given the tensor and returns one of the same shape and type.

    Raises:
        UnknownNameError: a pattern matches nothing; the message gives the nearest name.
        InputError: a function returned something else (raised when the model runs).
    """
    from zoo.inspect.hooks import intervene as start

    return start(model, changes)


def attend(
    model: torch.nn.Module,
    inputs: Any,
    *,
    at: str = "stack.**.attention",
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | Literal["mean"] | None = None,
    rollout: bool = False,
) -> Attended:
    """Who attends to whom: the attention weights of some layers and heads, in eval mode and without gradients.

    Only what is asked for is kept, so that one layer of many costs the memory of one.

    Args:
        model: see `hook_points`.
        inputs: the model's first input, or a mapping of its inputs by name.
        at: whose attention, as a pattern of hook points: of a model with several stacks `encoder.stack.**.attention`,
            `decoder.stack.**.cross_attention`, `text.stack.**.attention`, and so on.
        layers: which of these, from 0; negative numbers count from the last (default: all).
        heads: which, or "mean" for the mean over all of them (default: all).
        rollout: trace attention through all layers too (Abnar and Zuidema 2020, https://arxiv.org/abs/2005.00928).

    Raises:
        InputError: no such layer or head, or an attention that gives no weights.
    """
    from zoo.inspect.attention import attend as look

    return look(model, inputs, at=at, layers=layers, heads=heads, rollout=rollout)


def cost(
    model: Any,
    overrides: Mapping[str, Any] | None = None,
    *,
    batch: int = 1,
    tokens: int | None = None,
    inputs: Mapping[str, torch.Tensor] | None = None,
) -> Part:
    """What a model costs, part by part: parameters, FLOPs, and the memory that training keeps.

    >>> zoo.cost("vit-base").flops
    35127656448

    Nothing is allocated: it is counted on the meta device.

    Args:
        model: the name of a preset, a YAML file, a mapping of fields, a config, or a model.
        overrides: fields to change, unless it is a model.
        batch: for how many examples.
        tokens: how long texts are (default: 512, or the longest that the model takes).
        inputs: tensors by name, for a model of which zoo cannot tell how large its inputs are.

    Raises:
        UnknownNameError, ConfigError: see `get_config`.
        InputError: `inputs` are needed.
    """
    from zoo.inspect.cost import cost as count

    return count(model, overrides, batch=batch, tokens=tokens, inputs=inputs)


def plan(
    model: Any,
    overrides: Mapping[str, Any] | None = None,
    *,
    devices: int = 1,
    memory: str | int = "80GB",
    strategy: Any = None,
    batch: int | None = None,
    tokens: int | None = None,
    precision: str = "32-true",
    checkpointing: bool = False,
    optimizer: str = "adamw",
    accelerator: Literal["gpu", "cpu"] = "gpu",
) -> Plan:
    """Whether a training fits into the memory of its devices, and what they send each other, by strategy.

    >>> zoo.plan("gpt2", devices=8, memory="24GB", strategy="fsdp", batch=256).estimates[0].largest

    Nothing is allocated: a step of one device is run on the meta device.

    Args:
        model, overrides: see `get_config`.
        devices: how many there are.
        memory: what each has, such as "80GB" or "79GiB".
        strategy: "single", "ddp", "fsdp", "tensor", or what `trainer.strategy` of a run says; or several of them as a list
            (default: all that are worth trying).
        batch: how many examples a step is for, on all devices (default: as many as fit).
        tokens: how long texts are (default: 512, or the longest that the model takes).
        precision: "32-true", "bf16-mixed" or "bf16-true", as Lightning calls them.
        checkpointing: whether only each block's input is kept (`activation_checkpointing` of a run).
        optimizer: by its name in a run's `optimizer`.
        accelerator: on "cpu" processes talk through gloo, which keeps more copies.

    Raises:
        UnknownNameError, ConfigError: see `get_config`; or a strategy that does not exist or does not go with the devices.
        InputError: a size without a unit, a number below 1, or a model of which zoo cannot tell how large its inputs are.
    """
    from zoo.planning.plan import plan as make

    return make(
        model,
        overrides,
        devices=devices,
        memory=memory,
        strategy=strategy,
        batch=batch,
        tokens=tokens,
        precision=precision,
        checkpointing=checkpointing,
        optimizer=optimizer,
        accelerator=accelerator,
    )


__all__ = [
    "attend",
    "build",
    "capture",
    "cost",
    "export",
    "get_config",
    "hook_points",
    "intervene",
    "load",
    "plan",
    "save",
    "train",
    "verify",
]
