"""The one task of a saved model that is asked, where the model may know several."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from zoo.errors import ConfigError, one_of, unknown
from zoo.training.evaluate import files_of, opened


class Way(NamedTuple):
    """A model that answers one kind of question, and what its run says of that."""

    model: Any
    """The model; of type `multi-task`, the path of one task (`zoo.model.route.Route`)."""
    data: Any
    """The data that this was learned from: fields, a name or a config; None if nobody says."""
    task: Any
    """The same of the task part."""
    home: Path | None
    """Where what the data left lies, such as a tokenizer; None for weights of the Hub."""
    name: str | None = None
    """Which of several tasks; None where the model knows one."""
    images: Any = None
    """The config of a transformer that reads images as this one does; None where it reads none."""

    @property
    def describes(self) -> bool:
        """Whether an image is read in front of a text."""
        return self.images is not None and getattr(self.model.config.embedding, "type", None) == "tokens"

    @property
    def task_type(self) -> str | None:
        """The type of the task part, if there is one."""
        return type_of(self.task)


def way(source: str | Path, name: str | None = None, data: Any = None) -> Way:
    """Opens a model for one of its tasks.

    Args:
        source: a run's folder, or what `zoo.load` takes.
        name: of the task; None where there is one.
        data: what is asked instead of the data of the run.

    Raises:
        ConfigError: there are several tasks and none is named, or one is named where the model does not have any.
        UnknownNameError: there is no such task.
        WeightsError: the model cannot be read.
    """
    model, known, goal = opened(Path(source), None, None, needs_data=False)
    home, name = files_of(source), task_name(model, source, name)
    if name is None:
        images = model.config if hasattr(getattr(model.config, "embedding", None), "image_size") else None
        return Way(model, data or known, goal, home, images=images)
    read = [each for each in model.config.read_by(name) if hasattr(model.config.embeddings[each], "image_size")]
    images = model.config.route(name, read[0]) if read else None
    home = home / name if home is not None and (home / name).is_dir() else home
    return Way(route_of(model, name), data or of_task(known, name), of_task(goal, name), home, name, images)


def task_name(model: Any, source: str | Path, name: str | None) -> str | None:
    """Which task of a model is asked: the one that is named, or the only one; None where the model is none of several.

    Raises:
        ConfigError: there are several tasks and none is named, or one is named where the model does not have any.
        UnknownNameError: there is no such task.
    """
    if model.config.type != "multi-task":
        if name is not None:
            raise ConfigError(f"--task: {source} is a model of type {model.config.type!r}, which has one task; leave this out")
        return None
    names = list(model.config.tasks)
    if name is None and len(names) > 1:
        raise ConfigError(f"{source} has {len(names)} tasks, so say which to ask: --task NAME, {one_of(names)}")
    if name is not None and name not in names:
        raise unknown("task", name, names)
    return name or names[0]


def route_of(model: Any, name: str) -> Any:
    """A task's path through a model, which knows where what the data of this task left lies, such as a tokenizer."""
    route, report = model.route(name), copy.copy(model.load_report)
    if report is not None:
        place = Path(report.place)
        own = (place if place.is_dir() else place.parent) / name
        report.place = str(own) if own.is_dir() else report.place
    route.load_report = report
    return route


def of_task(fields: Any, name: str) -> Any:
    """What a run of several tasks says of one: of its data or of its task part; None if nothing."""
    tasks = fields.get("tasks") if isinstance(fields, Mapping) and fields.get("type") == "multi-task" else None
    return tasks.get(name) if isinstance(tasks, Mapping) else None


def type_of(fields: Any) -> str | None:
    """The type of a part, of which there are fields, a name or a config."""
    return fields.get("type") if isinstance(fields, Mapping) else getattr(fields, "type", fields)


__all__ = ["Way", "of_task", "route_of", "task_name", "type_of", "way"]
