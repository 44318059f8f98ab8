"""How good a model is on the part of the data that was never trained or tuned on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor

from zoo import registry
from zoo.config import Config, Slot
from zoo.config.base import raise_problems
from zoo.config.messages import config_error
from zoo.config.source import read_yaml
from zoo.data.base import Data, SplitName
from zoo.errors import ConfigError, ZooError
from zoo.task.base import Task
from zoo.training.folder import CONFIG


class Evaluation(NamedTuple):
    """What an evaluation gave."""

    metrics: dict[str, float]
    """`accuracy` and whatever else the task measures, and `loss`."""
    examples: int
    """On how many examples."""
    predictions: Tensor
    """What the model said: for a classification the logits (examples, classes)."""
    targets: Tensor
    """What was wanted: for a classification the labels (examples,)."""


def evaluate(model: Any, data: Any = None, task: Any = None, split: SplitName = "test") -> Evaluation:
    """Measures a model.

    Args:
        model: a model, or what `zoo.load` takes, or the folder of a run.
        data: the name, the fields or the config of data (default: those of the run).
        task: the same of a task (default: that of the run, else `classification`).
        split: which part; "test" is the part that no training sees.

    Raises:
        ConfigError: the data do not fit the model, or none are named.
        WeightsError, DataError: model or data cannot be read.
    """
    if isinstance(model, (str, Path)):
        model, data, task = opened(Path(model), data, task)
    data, task = checked("data", data), checked("task", task or "classification")
    try:
        raise_problems("eval", task.problems(model=model.config, data=data))
        raise_problems("eval", data.problems(model=model.config))
    except ValidationError as error:
        raise config_error(error) from None
    return _measured(model, registry.make(data), registry.make(task), split)


@torch.inference_mode()
def _measured(model: Any, data: Data, task: Task, split: SplitName) -> Evaluation:
    was_training = model.training
    model.eval()
    metrics, loss, predictions, targets = task.metrics(model), 0.0, [], []
    for metric in metrics.values():
        metric.distributed_available_fn = lambda: False  # this process alone sees all examples
    for batch in data.loader(split):
        step = task.step(model, {name: tensor.to(model.device) for name, tensor in batch.items()})
        loss += float(step.loss) * len(step.targets)
        predictions.append(step.predictions.float().cpu())
        targets.append(step.targets.cpu())
        for metric in metrics.values():
            metric.update(predictions[-1], targets[-1])
    model.train(was_training)
    figures = {name: float(metric.compute()) for name, metric in metrics.items()}
    everything = torch.cat(targets)
    return Evaluation({**figures, "loss": loss / len(everything)}, len(everything), torch.cat(predictions), everything)


def checked(kind: str, value: Any) -> Any:
    """The config of a part of `kind` from its name, fields or config.

    Raises:
        ConfigError: it does not describe one.
    """
    if isinstance(value, Config):
        return value
    try:
        return Slot(kind).validate(value)
    except ValidationError as error:
        raise config_error(error, kind) from None
    except ValueError as error:
        raise ConfigError(f"{kind}: {error}") from None


def opened(source: Path, data: Any, task: Any, needs_data: bool = True) -> tuple[Any, Any, Any]:
    """The model at `source`, and what its run says of data and task where nobody else does.

    Raises:
        ZooError: the run is not finished.
        ConfigError: `needs_data`, and nobody says which.
    """
    from zoo.api import load

    home = next((folder for folder in (source, source.parent) if (folder / CONFIG).is_file()), None)
    if home is not None:
        run = read_yaml(home / CONFIG)
        if isinstance(run, Mapping):
            data, task = data or run.get("data"), task or run.get("task")
    if source == home:
        if not (source / "model").is_dir():
            raise ZooError(f"{source}: this run is not finished; evaluate {source / 'last.ckpt'}, or go on with --resume")
        source = source / "model"
    if data is None and needs_data:
        raise ConfigError(f"data: {source} belongs to no run, so say on what to measure it: --data digits")
    return load(source), data, task
