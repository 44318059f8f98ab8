"""What one device holds of a model: linear layers cut as the parts' `sharding` says, and some of the experts."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import ConfigError
from zoo.model.construct import on_meta
from zoo.planning.strategy import Strategy


def share_of(config: Any, strategy: Strategy, precision: str) -> Any:
    """The part of a model that one device holds before FSDP2 divides it, on the meta device and in train mode.

    Raises:
        ConfigError: the model cannot be divided among so many devices.
    """
    from zoo.training.sharding import expert_misfits, misfits, own_heads

    model = on_meta(config)
    for problem in chain(misfits(model, strategy.tensor), expert_misfits(model, strategy.expert, strategy.tensor)):
        raise ConfigError(problem)
    for part in model.modules() if strategy.tensor > 1 else ():
        for name, way in getattr(type(part), "sharding", {}).items():
            layer = getattr(part, name, None)
            if isinstance(layer, nn.Linear) and way in ("column", "row"):
                _cut(layer, way, strategy.tensor)
            elif way == "heads" and isinstance(layer, tuple):
                setattr(part, name, own_heads(layer, 0, strategy.tensor))
            elif way == "heads" and layer is not None:
                own = torch.empty(*layer.shape[:-1], layer.shape[-1] // strategy.tensor, device="meta")
                setattr(part, name, nn.Parameter(own, layer.requires_grad))
    for experts in divided_experts(model, strategy):
        experts.number //= strategy.expert * strategy.tensor
        for part in experts.modules():
            for name, parameter in list(part.named_parameters(recurse=False)):
                setattr(part, name, nn.Parameter(parameter[: experts.number].detach(), parameter.requires_grad))
    return model.to(torch.bfloat16 if precision == "bf16-true" else torch.float32).train()


def _cut(layer: nn.Linear, way: str, among: int) -> None:
    rows, columns = layer.weight.shape
    if way == "column":
        layer.out_features = rows = rows // among
        if layer.bias is not None:
            layer.bias = nn.Parameter(layer.bias[:rows], layer.bias.requires_grad)
    else:
        layer.in_features = columns = columns // among
    layer.weight = nn.Parameter(torch.empty(rows, columns, dtype=layer.weight.dtype, device="meta"), layer.weight.requires_grad)


def divided_experts(model: nn.Module, strategy: Strategy) -> list[Any]:
    """The stacked experts of a model, where each device has only some of them."""
    return all_experts(model) if strategy.expert * strategy.tensor > 1 else []


def all_experts(model: nn.Module) -> list[Any]:
    """The stacked experts of a model, each with the `number` of them."""
    declared = ((part, getattr(type(part), "sharding", {})) for part in model.modules())
    return [getattr(part, name) for part, sharding in declared for name, way in sharding.items() if way == "experts"]


def shards(model: nn.Module, strategy: Strategy) -> dict[int, int]:
    """By the `id` of each parameter of a share: among how many devices FSDP2 divides it."""
    found = {id(parameter): strategy.sharded for parameter in model.parameters()}
    if strategy.expert > 1:
        for experts in divided_experts(model, strategy):
            found |= {id(parameter): strategy.replicas for parameter in experts.parameters()}
    return found


class EvenExchange:
    """Rows on their way to the devices that hold their experts, and back: as many arrive as leave, as if routing were even.

    The operators are those of `zoo.training.expert_parallel.Exchange`, which knows how many rows each device gets.

    Args:
        count: is told what is sent, `exchange` or `sum`, and of which rows.
    """

    def __init__(self, strategy: Strategy, count: Callable[[str, Tensor], None]) -> None:
        self.strategy, self.count = strategy, count
        self.back: Any = None

    def bring(self, experts: Any, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Rows (rows, width) of this device's tokens: those of its own experts, and how many each has (experts here,)."""
        rows, counts = inputs
        total, order = len(rows), None
        if self.strategy.tensor > 1:  # devices of a group have the same rows, and each takes some
            rows = self._sent(rows, math.ceil(total / self.strategy.tensor), "", "sum")
        if self.strategy.expert > 1:
            order = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
            rows = self._sent(rows, len(rows), "exchange", "exchange").index_select(0, order)
        self.back = total, order
        return rows, counts[: experts.number]

    def send_back(self, experts: Any, inputs: Any, found: Tensor) -> Tensor:
        """What became of them, (rows, width), where the tokens are."""
        total, order = self.back
        self.back = None
        if order is not None:
            found = self._sent(found.index_select(0, order.argsort()), len(found), "exchange", "exchange")
        return self._sent(found, total, "sum", "") if self.strategy.tensor > 1 else found

    def _sent(self, rows: Tensor, number: int, forward: str, backward: str) -> Tensor:
        arrived: Tensor = _Sent.apply(rows, number, forward, backward, self.count)
        return arrived


class _Sent(torch.autograd.Function):
    """So many other rows for some rows, and gradients for these; what kind of sending it is, forward and backward."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, number: int, forward: str, backward: str, count: Any) -> Tensor:
        ctx.rows, ctx.backward_kind, ctx.count = len(rows), backward, count
        arrived = rows.new_empty(number, rows.shape[1])
        if forward:
            count(forward, arrived)
        return arrived

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        arrived = gradient.new_empty(ctx.rows, gradient.shape[1])
        if ctx.backward_kind:
            ctx.count(ctx.backward_kind, arrived)
        return arrived, None, None, None, None


__all__ = ["EvenExchange", "all_experts", "divided_experts", "shards", "share_of"]
