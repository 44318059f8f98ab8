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
from zoo.errors import ConfigError, DataError, ZooError
from zoo.resources import packaged
from zoo.task.base import Task
from zoo.training.folder import CONFIG


class Evaluation(NamedTuple):
    """What an evaluation gave."""

    metrics: dict[str, float]
    """`accuracy` and whatever else the task measures, `loss`, and what simple rules would reach, if the task knows any."""
    examples: int
    """On how many examples; for language models, how many tokens were guessed."""
    predictions: Tensor
    """What the model said: for a classification the logits (examples, classes); see `zoo.task.base.Step`."""
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
    home = None
    if isinstance(model, (str, Path)):
        home = files_of(model)
        model, data, task = opened(Path(model), data, task)
    data, task = checked("data", data), checked("task", task or "classification")
    try:
        raise_problems("eval", task.problems(model=model.config, data=data))
        raise_problems("eval", data.problems(model=model.config))
    except ValidationError as error:
        raise config_error(error) from None
    examples, goal = registry.make(data), registry.make(task)
    examples.recall(home)
    goal.adapt(examples)
    return _measured(model, examples, goal, split)


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
        said = step.predictions.cpu()
        predictions.append(said.float() if said.is_floating_point() else said)
        targets.append(step.targets.cpu())
        for metric in metrics.values():
            metric.update(predictions[-1], targets[-1])
    model.train(was_training)
    everything = torch.cat(targets)
    if len(everything) == 0:
        raise DataError(f"{data.place}: nothing in its {split} part is asked of a model")
    figures = {name: float(metric.compute()) for name, metric in metrics.items()}
    figures |= {"loss": loss / len(everything), **task.references(data, split, everything)}
    return Evaluation(figures, len(everything), torch.cat(predictions), everything)


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


def files_of(source: str | Path) -> Path | None:
    """The folder in which what belongs to a model lies, such as its tokenizer; None for weights of the Hub."""
    path = packaged(source)
    return path if path.is_dir() else path.parent if path.is_file() else None


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
