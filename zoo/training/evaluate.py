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
from zoo.config.merge import merge, unflatten
from zoo.config.messages import config_error
from zoo.config.source import read_yaml
from zoo.data.base import Data, SplitName
from zoo.errors import ConfigError, DataError, ZooError, did_you_mean
from zoo.inspect.experts import Choices, Experts
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
    """What the model said: for a classification the logits (examples, classes); see `zoo.task.base.Step`. Of several tasks,
    whose answers have different shapes, nothing."""
    targets: Tensor
    """What was wanted: for a classification the labels (examples,)."""
    experts: Experts | None = None
    """Which experts the tokens of each task chose, if the model has any; one task alone is called as its type."""


def evaluate(
    model: Any,
    data: Any = None,
    task: Any = None,
    split: SplitName = "test",
    changes: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Measures a model.

    Args:
        model: a model, or what `zoo.load` takes, or the folder of a run.
        data: the name, the fields or the config of data (default: those of the run).
        task: the same of a task (default: that of the run, else `classification`).
        split: which part; "test" is the part that no training sees.
        changes: fields of data and task that are to be others than the run says: `{"data.batch_size": 8}`.

    Raises:
        ConfigError: the data do not fit the model, or none are named.
        WeightsError, DataError: model or data cannot be read.
    """
    home = None
    if isinstance(model, (str, Path)):
        home = files_of(model)
        model, data, task = opened(Path(model), data, task)
    data, task = _changed(data, task or "classification", changes or {})
    try:
        raise_problems("eval", task.problems(model=model.config, data=data))
        raise_problems("eval", data.problems(model=model.config))
    except ValidationError as error:
        raise config_error(error) from None
    examples, goal = registry.make(data), registry.make(task)
    examples.recall(home)
    goal.adapt(examples)
    return _measured(model, examples, goal, split)


def _changed(data: Any, task: Any, changes: Mapping[str, Any]) -> tuple[Any, Any]:
    """The configs of data and task, with other fields where `changes` say so."""
    change = unflatten(changes)
    for name, value in change.items():
        if name not in ("data", "task") or not isinstance(value, (str, Mapping)):
            hint = did_you_mean(name, ("data", "task")) or "; see zoo train for changing what is trained"
            raise ConfigError(f"{name}: expected a field of data or task, as in data.batch_size=8{hint}")
    merged = {name: merge(value, change.get(name, {}), Slot(name)) for name, value in (("data", data), ("task", task))}
    return checked("data", merged["data"]), checked("task", merged["task"])


@torch.inference_mode()
def _measured(model: Any, data: Data, task: Task, split: SplitName) -> Evaluation:
    was_training = model.training
    model.eval()
    metrics, predictions, targets = task.metrics(model), [], []
    asked: set[str] = set()  # of several tasks, not all need be measured
    losses: dict[str, list[float]] = {}  # the sum, and over how many targets: of all, and of each task where there are several
    for metric in metrics.values():
        metric.distributed_available_fn = lambda: False  # this process alone sees all examples
    choices = Choices()
    with choices.watching(model):
        for batch in data.loader(split):
            step = task.step(model, {name: tensor.to(model.device) for name, tensor in batch.items()})
            choices.belong_to(step.task or task.config.type)  # type: ignore[attr-defined]
            for name in ("loss", *(() if step.task is None else (f"{step.task}/loss",))):
                before = losses.get(name, [0.0, 0])
                losses[name] = [before[0] + float(step.loss) * len(step.targets), before[1] + len(step.targets)]
            said, wanted = step.predictions.cpu(), step.targets.cpu()
            said = said.float() if said.is_floating_point() else said
            for name, metric in step.measured(metrics).items():
                metric.update(said, wanted)
                asked.add(name)
            # what different tasks say has different shapes: of them, the targets alone are kept, to be counted
            predictions.append(said if step.task is None else said.new_empty(0))
            targets.append(wanted)
    model.train(was_training)
    everything = torch.cat(targets)
    if len(everything) == 0:
        raise DataError(f"{data.place}: nothing in its {split} part is asked of a model")
    figures = {name: float(metric.compute()) for name, metric in metrics.items() if name in asked}
    figures |= {name: total / number for name, (total, number) in losses.items() if number}
    figures |= task.references(data, split, everything)
    return Evaluation(figures, len(everything), torch.cat(predictions), everything, choices.shares())


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

    home, run = run_of(source)
    data, task = data or run.get("data"), task or run.get("task")
    if source == home:
        if not (source / "model").is_dir():
            raise ZooError(f"{source}: this run is not finished; evaluate {source / 'last.ckpt'}, or go on with --resume")
        source = source / "model"
    if data is None and needs_data:
        raise ConfigError(f"data: {source} belongs to no run, so say on what to measure it: --data digits")
    return load(source), data, task


def run_of(source: Path) -> tuple[Path | None, Mapping[str, Any]]:
    """The folder of the run that a model belongs to, and the fields of the run; None and nothing where there is none."""
    home = next((folder for folder in (source, source.parent) if (folder / CONFIG).is_file()), None)
    run = None if home is None else read_yaml(home / CONFIG)
    return home, run if isinstance(run, Mapping) else {}
