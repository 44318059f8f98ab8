"""What an optimiser keeps for each parameter: counted on a step that it makes on the meta device."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoo.errors import ConfigError
from zoo.planning.ledger import Ledger
from zoo.planning.step import Settings, Step, share_of
from zoo.planning.strategy import Strategy

TWO_MOMENTS = ("adamw", "adam")
"""Optimisers of two averages for each number and of a fused step, which need not be tried."""


class Held(NamedTuple):
    """Bytes on one device."""

    states: float
    temporary: float
    """While it steps."""


def held_by(name: str, config: Any, strategy: Strategy, settings: Settings, step: Step) -> Held:
    """What the optimiser of this name needs on one device.

    Raises:
        ConfigError: no optimiser has this name, or it cannot be tried without memory.
    """
    if name in TWO_MOMENTS:
        return Held(2 * step.gradients, 0)
    from pydantic import ValidationError

    from zoo.config.messages import config_error
    from zoo.training.optimizer import OptimizerConfig, make_optimizer

    try:
        chosen = OptimizerConfig(name=name)
    except ValidationError as error:
        raise config_error(error, "optimizer") from None
    model = share_of(config, strategy, settings.precision)
    optimizer: Any = make_optimizer(model, chosen, fused_allowed=False)
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter)
    ledger = Ledger([*model.parameters(), *(each.grad for each in model.parameters() if each.grad is not None)])
    try:
        with ledger:
            optimizer.step()
    except (RuntimeError, NotImplementedError) as error:
        why = " ".join(str(error).split())[:80]
        raise ConfigError(f"optimizer: {name!r} looks at values, so that it cannot be tried without memory ({why})") from None
    states = sum(value.untyped_storage().nbytes() for state in optimizer.state.values() for value in _tensors(state))
    temporary: float = max((sum(peak.values()) for peak in ledger.peaks.values()), default=0) - states
    if not settings.gloo and "fused" not in optimizer.defaults:
        temporary = max(temporary, step.gradients * strategy.sharded)  # on GPUs all parameters are treated together
    return Held(states / strategy.sharded, max(temporary, 0) / strategy.sharded)


def _tensors(state: Any) -> list[Tensor]:
    return [value for value in state.values() if isinstance(value, Tensor) and value.ndim > 0]
