"""The fields of `lightning.Trainer`, checked against its own signature before anything is built."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from zoo.checkpoint.sharded import is_distributed
from zoo.config import Config, Problem, within
from zoo.config.base import PositiveInt
from zoo.config.messages import found
from zoo.errors import ConfigError, did_you_mean, one_of
from zoo.extras import require
from zoo.training.sharding import FUSED

OURS = {
    "callbacks": "callbacks are objects, which a config cannot hold; use ZooModule in a lightning.Trainer of your own",
    "logger": "a run writes metrics.csv and a TensorBoard log into its folder",
    "default_root_dir": "set `folder` of the run instead",
    "enable_checkpointing": "a run always writes last.ckpt",
}
"""Arguments of the Trainer that a run sets itself, and why."""

DIVISIBLE = (
    "adamw", "adam", "sgd", "momentum", "nesterov", "lion", "muon", "nadamw", "radamw", "adan", "adagrad", "rmsprop",
    "adabelief", "adadelta", "adamax", "adamc", "adamwlegacy", "adanw", "adopt", "adoptc", "adoptw", "laprop", "lapropc",
    "larc", "lars", "lionc", "madgrad", "madgradw", "nadam", "nadamc", "nesterovw", "nlarc", "nlars", "nmuon", "radabelief",
    "radam", "rmsproptf", "rmsproptfc", "rmsproptfw", "sgdc", "sgdw",
)  # fmt: skip
"""Optimisers that were seen to give a divided model the weights that they give a whole one; others fail, or wait forever."""
DIVISIBLE_BY_DATA = ("lamb", "lambc", "lambcd", "lambcw", "lambw")
"""Those that do so without tensor parallelism only: they look at all weights together."""


class ParallelConfig(Config):
    """Fields of `trainer.strategy` for a model that is divided among processes."""

    kind: ClassVar[str] = "strategy"

    type: Literal["model-parallel"] = "model-parallel"
    """Lightning's ModelParallelStrategy."""
    data: PositiveInt | None = None
    """Among how many groups of processes the batches, and by FSDP2 the weights, are divided (default: what `devices`
    leaves, else `expert`)."""
    tensor: PositiveInt = 1
    """Among how many processes each group divides the work on one batch, as the parts of the model declare it."""
    expert: PositiveInt = 1
    """Among how many of the `data` groups the experts of each `mixture-of-experts` are divided; tokens travel to theirs."""

    def groups(self, fields: Mapping[str, Any]) -> int | None:
        """`data`, or what the other fields of the Trainer make it; None where they do not say."""
        if self.data is not None:
            return self.data
        processes = _processes(fields)
        if processes is not None:
            return max(processes // self.tensor, 1)
        return self.expert if self.tensor * self.expert > 1 and "devices" not in fields else None

    def misfits(self, fields: Mapping[str, Any]) -> Iterator[Problem]:
        """What does not fit the other fields of the Trainer."""
        groups, processes = self.groups(fields), _processes(fields)
        if groups is None:
            yield ("strategy", "data"), "this field is needed where `devices` is no number"
        elif groups * self.tensor == 1:
            yield ("strategy",), "one process has nothing to divide; set data or tensor to 2 or more"
        elif groups % self.expert:
            yield ("strategy", "expert"), f"data {groups} cannot be divided evenly among {self.expert} processes"
        elif processes is not None and groups * self.tensor != processes:
            product = f"data {groups} x tensor {self.tensor}"
            yield ("devices",), f"{product} are {groups * self.tensor} processes, and not {processes}"


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
        elif name == "strategy" and isinstance(value, (str, Mapping)):
            yield from _strategy_problems(value, fields)
        else:
            yield from ((((name,), message)) for message in _misfits(value, hints.get(name, Any)))


def parallel_problems(run: Any) -> Iterator[Problem]:
    """What of a run's other fields does not go with a model that is divided among processes."""
    strategy = parallel(run.trainer)
    if strategy is None:
        return
    for name in ("averaging", "compile"):
        if getattr(run, name, None):
            yield (name,), "not with a model that is divided among processes (trainer.strategy.type: model-parallel)"
    name, names = run.optimizer.name, DIVISIBLE + (DIVISIBLE_BY_DATA if strategy.tensor == 1 else ())
    if name not in names:
        yield ("optimizer", "name"), f"{name!r} is not for a model that is divided among processes; expected {one_of(names)}"
    if run.optimizer.fused and name not in FUSED:
        yield ("optimizer", "fused"), f"torch cannot fuse {name!r} for a model that is divided among processes"
    if strategy.tensor > 1 or strategy.expert > 1:
        from zoo.model.construct import on_meta
        from zoo.training.sharding import expert_misfits, misfits

        model = on_meta(run.model)
        by_tensor = (("tensor", message) for message in misfits(model, strategy.tensor))
        by_expert = (("expert", message) for message in expert_misfits(model, strategy.expert, strategy.tensor))
        for name, message in islice(chain(by_tensor, by_expert), 1):
            yield ("trainer", "strategy", name), message


def parallel(fields: Mapping[str, Any]) -> ParallelConfig | None:
    """What `strategy` says of a divided model; None where it means another of Lightning's strategies."""
    value = fields.get("strategy")
    if value == "model-parallel":
        return ParallelConfig()
    return ParallelConfig.model_validate(value) if isinstance(value, Mapping) else None


def check_resumed(fields: Mapping[str, Any], checkpoint: Path) -> None:
    """Raises a ConfigError where a divided model is to go on from what some other engine wrote in a way of its own."""
    if parallel(fields) is not None and checkpoint.is_dir() and not is_distributed(checkpoint):
        what = f"{checkpoint} is a folder that another strategy than model-parallel wrote"
        raise ConfigError(f"trainer.strategy: {what}; go on with that one, or start from `weights`")


def shares(fields: Mapping[str, Any]) -> int | None:
    """Into how many shares the batches of a training are divided; None where the machine says."""
    strategy = parallel(fields)
    if strategy is not None:
        return strategy.groups(fields)
    if "devices" not in fields and fields.get("accelerator") == "cpu" and fields.get("num_nodes", 1) == 1:
        return 1
    return _processes(fields)


def _strategy_problems(value: Any, fields: Mapping[str, Any]) -> Iterator[Problem]:
    if isinstance(value, str) and value.startswith(("ddp_spawn", "ddp_fork", "ddp_notebook")):
        yield ("strategy",), f"{value!r} brings no figures back from its processes; use 'ddp'"
        return
    if isinstance(value, str) and value != "model-parallel":
        known = require("lightning.pytorch.strategies", "train", "training").StrategyRegistry.available_strategies()
        if value not in ("auto", *known):
            hint = did_you_mean(value, [*known, "model-parallel", "auto"]) or "; see the documentation of lightning.Trainer"
            yield ("strategy",), f"unknown strategy {value!r}{hint}"
        return
    try:
        strategy = parallel(fields)
    except ValidationError as error:
        yield from within("strategy", found(error))
        return
    if strategy is not None:
        yield from strategy.misfits(fields)


def _processes(fields: Mapping[str, Any]) -> int | None:
    """How many processes `devices` and `num_nodes` ask for; None where the machine says."""
    devices, nodes = fields.get("devices"), fields.get("num_nodes", 1)
    if isinstance(devices, (list, tuple)):
        devices = len(devices)
    if isinstance(devices, str) and devices.isdecimal():
        devices = int(devices)
    return devices * nodes if isinstance(devices, int) and devices > 0 and isinstance(nodes, int) else None


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
    strategy = parallel(fields)
    if strategy is not None:
        from zoo.training.model_parallel import ModelParallel

        groups = strategy.groups(fields) or 1
        engine = ModelParallel(
            data_parallel_size=groups, tensor_parallel_size=strategy.tensor, expert_parallel_size=strategy.expert
        )
        devices = groups * strategy.tensor // fields.get("num_nodes", 1)
        fields = {"devices": devices, **fields, "strategy": engine}
    try:
        return lightning.Trainer(**{**ours, **fields})
    except (refused, ValueError, TypeError) as error:
        raise ConfigError(f"trainer: {' '.join(str(error).split())}") from None
