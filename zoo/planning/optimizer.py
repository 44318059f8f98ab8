"""What an optimiser keeps for each parameter: counted on a step that it makes on the meta device."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoo.errors import ConfigError
from zoo.planning.ledger import Ledger
from zoo.planning.share import shards, share_of
from zoo.planning.step import Settings, Step
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
    sizes = {id(each): sum(map(_stored, _tensors(state))) for each, state in optimizer.state.items()}
    among = shards(model, strategy)
    peak = max((sum(peak.values()) for peak in ledger.peaks.values()), default=0) - sum(sizes.values())
    # FSDP2 leaves as much of what is temporary as of the gradients
    temporary = (
        max(peak, 0) * step.gradients / max(sum(_stored(each.grad) for each in model.parameters() if each.requires_grad), 1)
    )
    if not settings.gloo and "fused" not in optimizer.defaults:
        temporary = max(temporary, step.gradients)  # on GPUs all parameters are treated together
    return Held(sum(size / among.get(each, strategy.sharded) for each, size in sizes.items()), temporary)


def _tensors(state: Any) -> list[Tensor]:
    return [value for value in state.values() if isinstance(value, Tensor) and value.ndim > 0]


def _stored(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()
