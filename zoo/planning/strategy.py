"""How a run's work is divided among devices, as the trainer's config and the command line say it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError

from zoo.config.messages import config_error
from zoo.errors import ConfigError, unknown

NAMES = ("single", "ddp", "fsdp", "tensor", "model-parallel")
"""One device; the whole model on each; FSDP2; tensor parallel; these and experts apart, as `data`, `tensor`, `expert` say."""


class Strategy(NamedTuple):
    """Into how many groups batches are divided, and among how many devices each group divides the work on its batch."""

    name: str
    """What people call it: `single`, `ddp`, `fsdp`, `tensor`, or `fsdp x tensor`."""
    data: int = 1
    tensor: int = 1
    expert: int = 1
    """Among how many of the groups experts are divided."""

    @property
    def replicas(self) -> int:
        """How many groups have the same experts."""
        return self.data // self.expert

    @property
    def sharded(self) -> int:
        """Among how many devices each weight, or share of one, is divided once more."""
        return 1 if self.name == "ddp" else self.data

    @property
    def label(self) -> str:
        both = f"fsdp {self.data} x tensor {self.tensor}" if self.data > 1 and self.tensor > 1 else self.name
        return f"{both}, expert {self.expert}" if self.expert > 1 else both

    @property
    def trainer(self) -> Any:
        """What `trainer.strategy` of a run says for it."""
        if self.name in ("single", "ddp"):
            return {"single": "auto"}.get(self.name, self.name)
        sizes = {"data": self.data, "tensor": self.tensor, **({"expert": self.expert} if self.expert > 1 else {})}
        return {"type": "model-parallel", **sizes}


def read_strategy(value: Any, devices: int) -> Strategy:
    """A strategy from its name, or from what `trainer.strategy` says.

    Raises:
        UnknownNameError: no strategy has this name.
        ConfigError: it does not go with so many devices.
    """
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"strategy: {value!r} is no YAML ({' '.join(str(error).split())[:80]})") from None
    if isinstance(value, Mapping):
        return _parallel(value, devices)
    if value == "auto":
        value = "single" if devices == 1 else "ddp"
    if value not in NAMES:
        raise unknown("strategy", value, NAMES)
    if value == "single" and devices > 1:
        raise ConfigError(f"strategy: 'single' uses one device, and there are {devices}; expected one of ddp, fsdp, tensor")
    if value != "single" and devices == 1:
        raise ConfigError(f"strategy: {value!r} needs 2 devices or more, and there is 1; expected 'single'")
    if value == "tensor":
        return Strategy("tensor", 1, devices)
    return Strategy("fsdp" if value == "model-parallel" else value, 1 if value == "single" else devices)


def _parallel(value: Mapping[str, Any], devices: int) -> Strategy:
    from zoo.training.trainer import ParallelConfig

    try:
        config = ParallelConfig.model_validate(value)
    except ValidationError as error:
        raise config_error(error, "strategy") from None
    fields = {"devices": devices}
    for place, message in config.misfits(fields):
        raise ConfigError(f"{'.'.join(map(str, place))}: {message}")
    data, tensor = config.groups(fields) or 1, config.tensor
    return Strategy("tensor" if data == 1 else "fsdp" if tensor == 1 else "fsdp x tensor", data, tensor, config.expert)


def all_strategies(devices: int, experts: int = 1) -> Iterator[Strategy]:
    """Those worth trying: within a group of 2, 4 or 8 devices work is divided too; more than 8 are seldom linked well.

    Args:
        experts: how many each mixture of the model has; they are divided as far as they can be.
    """
    if devices == 1:
        yield Strategy("single")
        return
    yield Strategy("ddp", devices)
    yield Strategy("fsdp", devices)
    if (expert := math.gcd(devices, experts)) > 1:
        yield Strategy("fsdp", devices, expert=expert)
    for tensor in (2, 4, 8):
        if devices % tensor == 0 and tensor <= devices:
            data = devices // tensor
            yield Strategy("tensor" if data == 1 else "fsdp x tensor", data, tensor)


__all__ = ["NAMES", "Strategy", "all_strategies", "read_strategy"]
